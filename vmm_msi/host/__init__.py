"""Read a host: its files, firmware tables and sysfs become one HostTopology.

``sources`` recognises each HOST and is the one way in; ``live`` reads a host's own files;
``scenario`` reads TOML; ``files`` opens this machine, a folder or a capture; ``firmware`` reads
ACPI tables and device trees; ``pci`` reads PCI functions. ``join`` merges sources, ``crosscheck``
compares them, ``resolve`` finds a device's SMMU and ITS, ``streams`` the devices of a StreamID.
"""
