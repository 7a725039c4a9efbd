"""The hook that libvirt runs when a QEMU guest starts or stops: https://libvirt.org/hooks.html.

``script`` writes the file that libvirt runs and tells whether it is in order; ``entry`` is what
that file starts for a guest of ours: ``look`` says what is wrong with the guest, ``journal`` keeps
what happened. Nothing here calls libvirt, which waits for the hook and would wait for ever.
"""
