"""libvirt domain XML: read it, edit it in place, compare it. Mechanism only, no policy.

``parse`` reads and writes text safely, ``domain`` reads facts, ``editor`` adds and removes vSMMUs
and assigned devices, ``metadata`` records what was added, ``support`` knows which libvirt can
carry it, ``checks`` what a nested guest needs, ``nodedev`` what libvirt knows of a host's
device, ``diff`` shows a change, ``template`` makes a new guest. Nothing here imports libvirt.
"""
