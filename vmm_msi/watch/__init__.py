"""``vmm-msi watch``: keep the doorbells of the guests that run bound, for as long as they run.

``service`` owns the process: signals, one worker per connection, systemd, metrics. A ``worker``
owns a connection, ``inbox`` has what it is to look at, ``guests`` brings one guest to where its
record says it should be, ``binder`` does that on the model. The state is in libvirt, in the live
metadata of each guest (:mod:`vmm_msi.domxml.bound_metadata`); what is in memory can be lost at any
time.
"""
