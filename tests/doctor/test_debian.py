"""Debian's own arm64 kernel, as its package configures it, on the emulated host's board."""

from __future__ import annotations

from pathlib import Path

import debian_kernel
import pytest

from vmm_msi.doctor.case_reader import read_case
from vmm_msi.doctor.rules import examine
from vmm_msi.host.files.archive import open_archive
from vmm_msi.host.files.in_memory import MemoryTree
from vmm_msi.host.live import read_sources
from vmm_msi.host.sources import HostSources

CAPTURE = Path(__file__).resolve().parent.parent / "captures" / "two-smmus.tar.zst"
RELEASE = "7.2.12+deb14-arm64"


class OtherKernel(MemoryTree):
    """A captured host with another kernel."""

    def __init__(self, config):
        super().__init__(
            "Debian's kernel",
            {
                "/proc/sys/kernel/osrelease": f"{RELEASE}\n".encode(),
                f"/boot/config-{RELEASE}": config.encode(),
            },
        )
        self._captured = open_archive(CAPTURE)

    def read(self, path, limit=4 << 20):
        if path in {"/proc/config.gz", "/vmm-msi/kernel-log"}:
            return None
        own = super().read(path, limit)
        return self._captured.read(path, limit) if own is None else own

    def names(self, path):
        return super().names(path) or self._captured.names(path)

    def link(self, path):
        return super().link(path) or self._captured.link(path)

    def exists(self, path):
        return super().exists(path) or (path != "/dev/iommu" and self._captured.exists(path))


@pytest.mark.lab_root
def test_debians_kernel_has_no_iommufd():
    config = debian_kernel.config()
    assert "# CONFIG_IOMMUFD is not set" in config.splitlines()
    tree = OtherKernel(config)
    case = read_case(HostSources(tree.source, read_sources(tree), (tree,)))
    findings = {finding.id: finding for finding in examine(case)}
    finding = findings["kernel-no-iommufd"]
    assert [str(evidence) for evidence in finding.evidence] == [
        f"/boot/config-{RELEASE}: CONFIG_IOMMUFD is not set"
    ]
    assert (
        f"Debian disables it in all arm64 kernels, including linux-image-{RELEASE}"
        in finding.remedy
    )
