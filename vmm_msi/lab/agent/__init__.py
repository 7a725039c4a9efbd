"""Serve requests inside the emulated host: calls on its kernel, guests on its libvirtd."""
