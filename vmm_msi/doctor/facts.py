"""What the files of a host tell of its kernel and of its software.

The same files are there on the live machine, in a folder and in a capture.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from vmm_msi.doctor.case import KernelFacts, SmmuHardware, Software
from vmm_msi.doctor.finding import Evidence
from vmm_msi.doctor.software import decode
from vmm_msi.host.files import UnreadableError, redact, text
from vmm_msi.host.files.capture_list import DAEMONS, MODULES
from vmm_msi.host.files.capture_paths import KERNEL_LOG, SOFTWARE
from vmm_msi.host.files.kernel_log import KMSG, kernel_log
from vmm_msi.host.pci.sysfs import driven_smmus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vmm_msi.host.files import HostTree
    from vmm_msi.types import HostTopology

T = TypeVar("T")

#: Linux ``include/uapi/linux/resource.h`` RLIM64_INFINITY.
NO_LIMIT = (1 << 64) - 1

_DEV_IOMMU = "/dev/iommu"
_OPTION = re.compile(r"^CONFIG_(\w+)=(.*)$", re.MULTILINE)
_RELEASE = re.compile(r"(\d+)\.(\d+)")
_LIMIT = re.compile(r"^Max locked memory +(\d+|unlimited) ", re.MULTILINE)

# Linux drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3.c arm_smmu_device_hw_probe; older releases print
# the input address size, too.
_FEATURES = re.compile(
    r"arm-smmu-v3 (\S+): (?:ias \d+-bit, )?oas \d+-bit \(features 0x([0-9a-f]+)\)"
)
# arm-smmu-v3.h ARM_SMMU_FEAT_*. The first three are where they were when the driver came, in 4.2.
_COHERENCY = 1 << 8
_TRANS_S1 = 1 << 9
_TRANS_S2 = 1 << 10
_NESTING = 1 << 19
_S2FWB = 1 << 23
#: The first release that nests for user space, and so looks at the last two.
_NESTS_SINCE = (6, 13)
#: The first release that sets S2FWB; stable releases of the two before got that later.
_FINDS_S2FWB_SINCE = (6, 15)


def read_kernel(
    tree: HostTree, host: HostTopology | None, unreadable: list[Evidence] | None = None
) -> KernelFacts:
    """Read what is known of a host's kernel.

    :param host: the host's topology, whose SMMUs the log's are found in by their addresses.
    :param unreadable: what could not be read is added to it, and why.
    """
    asked = _Asked(unreadable if unreadable is not None else [])
    release = asked.text(tree, "/proc/sys/kernel/osrelease")
    options, options_from = _options(tree, release, asked)
    log = asked.of(lambda: kernel_log(tree)) or []
    return KernelFacts(
        release=release,
        options=options,
        options_from=options_from,
        parameters=dict(_parameters(tree, asked)),
        log=tuple(log),
        smmus=dict(_smmus(tree, host, release, log, asked)),
        cmdline=asked.of(partial(_command_line, tree)),
        dev_iommu=asked.of(lambda: tree.exists(_DEV_IOMMU)) if release else None,
    )


def read_software(tree: HostTree, unreadable: list[Evidence] | None = None) -> Software:
    """Read which libvirt and QEMU a capture was told of, and what the host's daemon may lock.

    :param unreadable: what could not be read is added to it, and why.
    :raise TopologyError: when what a capture has of it is malformed.
    """
    asked = _Asked(unreadable if unreadable is not None else [])
    told = asked.of(lambda: tree.read(SOFTWARE))
    found = Software() if told is None else decode(told, f"{tree.source}: {SOFTWARE[1:]}")
    return Software(
        found.libvirt,
        found.qemu,
        found.driver,
        source=found.source,
        daemon_locked_memory=asked.of(lambda: _locked_memory(tree)),
    )


class _Asked:
    """Asks for files and writes down those that cannot be read."""

    def __init__(self, unreadable: list[Evidence]) -> None:
        self._unreadable = unreadable

    def of(self, ask: Callable[[], T]) -> T | None:
        """Return an answer; None where there is none."""
        try:
            return ask()
        except UnreadableError as failure:
            self._unreadable.append(Evidence(failure.path, failure.reason))
            return None

    def text(self, tree: HostTree, path: str) -> str | None:
        """Return a file of one short text; None where there is none."""
        return self.of(partial(text, tree, path))


def _options(
    tree: HostTree, release: str | None, asked: _Asked
) -> tuple[dict[str, str] | None, str]:
    """Return the kernel's configuration and where it is from."""
    places = ["/proc/config.gz"]
    if release:
        places += [f"/boot/config-{release}", f"/lib/modules/{release}/config"]
    for place in places:
        data = asked.of(partial(_configuration, tree, place))
        if data is not None:
            found = _OPTION.findall(data.decode("utf-8", "replace"))
            return {name: value.strip('"') for name, value in found}, place
    return None, ""


def _command_line(tree: HostTree) -> str | None:
    """Return the arguments that are about this here, as a capture has them."""
    data = tree.read("/proc/cmdline")
    return None if data is None else redact.command_line(data).decode().strip()


def _configuration(tree: HostTree, place: str) -> bytes | None:
    data = tree.read(place)
    if data is None or not place.endswith(".gz"):
        return data
    try:
        return redact.gunzip(data)
    except ValueError as failure:
        raise UnreadableError(tree.source, place, str(failure)) from failure


def _parameters(tree: HostTree, asked: _Asked) -> Iterator[tuple[str, str]]:
    for module in MODULES:
        folder = f"/sys/module/{module}/parameters"
        for name in asked.of(partial(tree.names, folder)) or ():
            value = asked.text(tree, f"{folder}/{name}")
            if value is not None:
                yield f"{module}.{name}", value


def _smmus(
    tree: HostTree,
    host: HostTopology | None,
    release: str | None,
    log: Sequence[str],
    asked: _Asked,
) -> Iterator[tuple[int, SmmuHardware]]:
    """Yield what the log says of each SMMU of the topology, the last that it said."""
    if host is None:
        return
    ids = {int(smmu.base): smmu.id for smmu in host.smmus if smmu.base is not None}
    bases = asked.of(lambda: _bases(tree)) or {}
    where = KERNEL_LOG if tree.exists(KERNEL_LOG) else KMSG
    for line in log:
        match = _FEATURES.match(line)
        base = bases.get(match[1]) if match else None
        if match is not None and base in ids:
            yield ids[base], _hardware(int(match[2], 16), release, Evidence(where, line))


def _bases(tree: HostTree) -> dict[str, int]:
    """Return the address of each SMMUv3's registers by the name of its platform device."""
    return {
        smmu.device: smmu.base for smmu in driven_smmus(tree) if smmu.version == 3 and smmu.device
    }


def _hardware(features: int, release: str | None, said: Evidence) -> SmmuHardware:
    match = _RELEASE.match(release or "")
    version = (int(match[1]), int(match[2])) if match else (0, 0)
    nests = version >= _NESTS_SINCE
    s2fwb = bool(features & _S2FWB) if nests else None
    evidence = [said]
    if s2fwb is False and version < _FINDS_S2FWB_SINCE:
        evidence.append(
            Evidence(
                "/proc/sys/kernel/osrelease",
                f"{release}: Linux 6.13 and 6.14 do not look for S2FWB, but for late updates of "
                "6.14, and take an SMMU that has it for one that has not",
            )
        )
    return SmmuHardware(
        stage1=bool(features & _TRANS_S1),
        stage2=bool(features & _TRANS_S2),
        nested=bool(features & _NESTING) if nests else None,
        s2fwb=s2fwb,
        coherent=bool(features & _COHERENCY),
        evidence=tuple(evidence),
    )


def _locked_memory(tree: HostTree) -> int | None:
    """Return what the first daemon that runs may lock, in bytes."""
    for daemon in DAEMONS:
        pid = (text(tree, f"/run/{daemon}.pid") or "").strip()
        if not pid.isdigit() or text(tree, f"/proc/{pid}/comm") != daemon:
            continue
        match = _LIMIT.search(text(tree, f"/proc/{pid}/limits") or "")
        if match is not None:
            return NO_LIMIT if match[1] == "unlimited" else int(match[1])
    return None
