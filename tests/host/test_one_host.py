"""Several HOSTs: sources about one host, or refused because they are not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from described_host import load_host
from host.host_files import HostFiles
from host.hosts import server, tables

from vmm_msi import samples
from vmm_msi.errors import TopologyError
from vmm_msi.host.join import host_of_functions
from vmm_msi.host.live import read_sources
from vmm_msi.host.one_host import check_one_host
from vmm_msi.host.sources import read_host
from vmm_msi.types import Granule, Its, Pa, PciAddress, PciFunction, PciSegment, Smmu

BOARD = load_host(samples.path("eight-its-server.dtb"))
CAPTURES = Path(__file__).parents[1] / "captures"
SERVER = read_sources(server().tree())
LISTED = [PciFunction(address) for address in SERVER[1].function_by_address]


def refusal(*hosts):
    with pytest.raises(TopologyError) as caught:
        check_one_host([(f"host{number}", sources) for number, sources in enumerate(hosts)])
    return str(caught.value)


@pytest.mark.parametrize(
    "others",
    [
        SERVER,
        SERVER[:1],
        SERVER[1:],
        [host_of_functions("libvirt", LISTED)],
        # A device was plugged in since, and the driver is another one.
        [host_of_functions("libvirt", [*LISTED[1:], PciFunction(PciAddress(0, 9, 0, 0))])],
        [host_of_functions("libvirt", [replace(LISTED[0], driver="vfio-pci")])],
        # The same tables, read for a kernel with another page size.
        [replace(SERVER[0], granule=Granule.K64, granule_known=True)],
        # Tables without APIC.
        [replace(SERVER[0], itses=())],
    ],
)
def test_sources_about_one_host(others):
    check_one_host([("files", SERVER), ("others", others)])


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (replace(BOARD, segments=(*BOARD.segments[1:],)), "PCI segment 0: present / absent"),
        (
            replace(BOARD, segments=(PciSegment(0, ats=True), *BOARD.segments[1:])),
            "ATS of PCI segment 0: no / yes",
        ),
        (
            replace(BOARD, itses=(*BOARD.itses[1:], Its(0, Pa(0x1000000)))),
            "ITS at 0x1000000: absent / present; ITS at 0x20000000: present / absent",
        ),
        (
            replace(BOARD, smmus=(*BOARD.smmus[:3], Smmu(3, Pa(0x1000000)))),
            "SMMU at 0x1000000: absent / SMMUv3; SMMU at 0x60030000000: SMMUv3 / absent; ",
        ),
        (replace(BOARD, routes=BOARD.routes[1:]), "route of 0000:00:00.0: SMMU 0x30000000, "),
    ],
)
def test_tables_that_differ(other, difference):
    message = refusal([BOARD], [other])
    assert message.startswith("reading host0 and host1: they do not describe one host: ")
    assert difference in message
    assert message.endswith(
        "use several HOSTs only as sources about one host, and one set of tables"
    )


def test_lists_without_a_common_function():
    kernel = host_of_functions("kernel", [PciFunction(PciAddress(5, 0, 0, 0))])
    message = refusal([kernel], [host_of_functions("libvirt", LISTED)])
    assert "PCI functions: 0005:00:00.0 and others / 0000:00:01.0 and others" in message


def test_a_kernel_that_drives_other_smmus():
    message = refusal(SERVER[1:], [BOARD])
    assert "SMMU at 0x2b400000: SMMUv3 / absent; " in message
    assert "; and 2 more differences; " in message


def test_captures_that_differ_in_canwbs_alone():
    names = [CAPTURES / f"{name}.tar.zst" for name in ("two-smmus", "no-canwbs")]
    with pytest.raises(TopologyError, match="one host: CANWBS of PCI segment 0: yes / no; use"):
        read_host(names)


def test_the_disagreements_of_one_host_do_not_refuse_it(tmp_path):
    """Firmware that contradicts the kernel's lists, in one folder."""
    other = tables(smmus=(0x1000000, 0x2000000))
    files = server()
    files.files |= HostFiles().tables(**other).files
    assert len(read_host([files.write(tmp_path)]).sources) == 2
