"""Compile device trees from source text with dtc."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from vmm_msi.errors import TopologyError
from vmm_msi.host.firmware.device_tree import parse_devicetree


def dtb(source):
    """Return the blob of ``source``; skip, in CI fail, without dtc."""
    dtc = shutil.which("dtc")
    if dtc is None:
        reason = "dtc is not installed (package device-tree-compiler)"
        if os.environ.get("CI") == "true":
            pytest.fail(f"in CI this must not be skipped: {reason}", pytrace=False)
        pytest.skip(reason)
    done = subprocess.run(
        [dtc, "-q", "-f", "-I", "dts", "-O", "dtb"], input=source.encode(), capture_output=True
    )
    assert done.stdout, done.stderr
    return done.stdout


ITS = """
its{n}: its@{base:x} {{
    compatible = "arm,gic-v3-its"; msi-controller; #msi-cells = <1>;
    reg = <{high:#x} {low:#x} 0x0 0x20000>; {extra}
}};
"""
SMMU = """
smmu{n}: iommu@{base:x} {{
    compatible = "arm,smmu-v3"; #iommu-cells = <1>;
    reg = <{high:#x} {low:#x} 0x0 0x20000>; {extra}
}};
"""
HOST = """
pcie{n}: pcie@{base:x} {{
    compatible = "pci-host-ecam-generic"; device_type = "pci";
    #address-cells = <3>; #size-cells = <2>;
    reg = <{high:#x} {low:#x} 0x0 0x10000000>; {extra}
}};
"""


def node(form, n, base, extra=""):
    return form.format(n=n, base=base, high=base >> 32, low=base & 0xFFFFFFFF, extra=extra)


def its(n, base=None, extra=""):
    return node(ITS, n, 0x20000000 + n * 0x40000 if base is None else base, extra)


def smmu(n, base=None, extra=""):
    return node(SMMU, n, 0x30000000 + n * 0x40000 if base is None else base, extra)


def pci(n, extra=""):
    return node(HOST, n, 0x40000000 + n * 0x10000000, extra)


def board(*parts):
    """Return the source of a tree with ``parts`` in its root, 64-bit addresses."""
    head = "/dts-v1/; / { #address-cells = <2>; #size-cells = <2>; "
    return head + "\n".join(parts) + "};"


def parse(*parts):
    return parse_devicetree(dtb(board(*parts)), "board.dtb")


def refused(parts, *texts):
    """Check that a board is refused with a message of one line that has ``texts``."""
    with pytest.raises(TopologyError) as caught:
        parse(*parts)
    message = str(caught.value)
    assert message.startswith("board.dtb: "), message
    for text in texts:
        assert text in message, message
    assert "\n" not in message
