"""``vmm-msi watch``: keep the doorbells of running guests bound.

``service`` owns the process: signals, one worker per connection, systemd and the metrics endpoint.
A ``worker`` owns one connection; its ``inbox`` queues the guests to check. ``reconcile`` compares
the record of a guest with its bound devices and binds or unbinds the difference; ``binder`` does
so in the simulator. libvirt holds all state, in the live metadata of each guest
(:mod:`vmm_msi.domxml.bound_metadata`), so the process may lose its memory at any time.
"""
