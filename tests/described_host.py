"""Read the description of one host, for tests that need its topology alone."""

from __future__ import annotations

from vmm_msi.host.sources import read_host


def load_host(path, granule=None):
    return read_host([path], granule).topology
