"""The strategies and the ITS selector that ship with vmm-msi; one plugin per module."""
