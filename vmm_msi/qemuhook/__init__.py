"""The hook that libvirt runs when a QEMU guest starts or stops: https://libvirt.org/hooks.html.

``script`` installs and checks the script that libvirt runs. For a guest managed by vmm-msi, the
script starts ``entry``; ``preflight`` lists the problems of the guest and ``run_records`` stores
the calls. Nothing here calls libvirt: libvirt waits for the hook, so such a call would deadlock.
"""
