"""Read libvirt domain XML, edit it in place and compare it: mechanism only, no policy.

``parse`` reads and writes text safely, ``libvirt_domain`` reads facts, ``editor`` adds and removes
vSMMUs and assigned devices, ``metadata`` records the added elements, ``added_elements`` compares
them with what libvirt kept, ``support`` maps features to releases, ``prerequisites`` checks a
nested guest, ``nodedev`` reads libvirt's description of a host device, ``diff`` shows a change and
``template`` creates a guest. No module imports libvirt.
"""
