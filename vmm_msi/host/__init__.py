"""Know a host: read its files, firmware tables and sysfs into one HostTopology.

``files`` reads what the host's operating system shows, from the machine itself, a folder or a
capture; ``firmware`` reads ACPI tables and device trees; ``pci`` reads PCI functions. ``sources``
loads a description of any kind, ``join`` merges several, ``crosscheck`` compares them, ``resolve``
finds a device's SMMU and ITS, ``streams`` the devices of a StreamID.
"""
