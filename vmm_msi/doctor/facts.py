"""Facts about a host's kernel and software, from its files.

The live machine, a folder and a capture have the same files.
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
# arm-smmu-v3.h ARM_SMMU_FEAT_*. The first three have not moved since the first driver, in 4.2.
_COHERENCY = 1 << 8
_TRANS_S1 = 1 << 9
_TRANS_S2 = 1 << 10
_NESTING = 1 << 19
_S2FWB = 1 << 23
#: First release that nests for user space and therefore sets the last two.
_NESTS_SINCE = (6, 13)
#: First release that sets S2FWB; stable updates of the two releases before it set it, too.
_DETECTS_S2FWB_SINCE = (6, 15)


def read_kernel(
    tree: HostTree, host: HostTopology | None, unreadable: list[Evidence] | None = None
) -> KernelFacts:
    """Read the facts about a host's kernel.

    :param host: the host's topology, whose SMMUs are matched with those in the log by address.
    :param unreadable: receives each file that could not be read, with the reason.
    """
    reader = _Reader(unreadable if unreadable is not None else [])
    release = reader.text(tree, "/proc/sys/kernel/osrelease")
    options, options_from = _options(tree, release, reader)
    log = reader.call(lambda: kernel_log(tree)) or []
    return KernelFacts(
        release=release,
        options=options,
        options_from=options_from,
        parameters=dict(_parameters(tree, reader)),
        log=tuple(log),
        smmus=dict(_smmus(tree, host, release, log, reader)),
        cmdline=reader.call(partial(_command_line, tree)),
        dev_iommu=reader.call(lambda: tree.exists(_DEV_IOMMU)) if release else None,
    )


def read_software(tree: HostTree, unreadable: list[Evidence] | None = None) -> Software:
    """Read the releases of libvirt and QEMU in a capture, and the daemon's limit on locked memory.

    :param unreadable: receives each file that could not be read, with the reason.
    :raise TopologyError: if the capture's record of the releases is malformed.
    """
    reader = _Reader(unreadable if unreadable is not None else [])
    data = reader.call(lambda: tree.read(SOFTWARE))
    releases = Software() if data is None else decode(data, f"{tree.source}: {SOFTWARE[1:]}")
    return Software(
        releases.libvirt,
        releases.qemu,
        releases.driver,
        source=releases.source,
        daemon_locked_memory=reader.call(lambda: _locked_memory(tree)),
    )


class _Reader:
    """Reads files and records those that are unreadable."""

    def __init__(self, unreadable: list[Evidence]) -> None:
        self._unreadable = unreadable

    def call(self, read: Callable[[], T]) -> T | None:
        """Return the result of ``read``; None if a file is unreadable."""
        try:
            return read()
        except UnreadableError as failure:
            self._unreadable.append(Evidence(failure.path, failure.reason))
            return None

    def text(self, tree: HostTree, path: str) -> str | None:
        """Return the text of a short file; None if it is missing or unreadable."""
        return self.call(partial(text, tree, path))


def _options(
    tree: HostTree, release: str | None, reader: _Reader
) -> tuple[dict[str, str] | None, str]:
    """Return the kernel's configuration and its file."""
    paths = ["/proc/config.gz"]
    if release:
        paths += [f"/boot/config-{release}", f"/lib/modules/{release}/config"]
    for path in paths:
        data = reader.call(partial(_configuration, tree, path))
        if data is not None:
            options = _OPTION.findall(data.decode("utf-8", "replace"))
            return {name: value.strip('"') for name, value in options}, path
    return None, ""


def _command_line(tree: HostTree) -> str | None:
    """Return the relevant kernel arguments, redacted as in a capture."""
    data = tree.read("/proc/cmdline")
    return None if data is None else redact.command_line(data).decode().strip()


def _configuration(tree: HostTree, path: str) -> bytes | None:
    data = tree.read(path)
    if data is None or not path.endswith(".gz"):
        return data
    try:
        return redact.gunzip(data)
    except ValueError as failure:
        raise UnreadableError(tree.source, path, str(failure)) from failure


def _parameters(tree: HostTree, reader: _Reader) -> Iterator[tuple[str, str]]:
    for module in MODULES:
        folder = f"/sys/module/{module}/parameters"
        for name in reader.call(partial(tree.names, folder)) or ():
            value = reader.text(tree, f"{folder}/{name}")
            if value is not None:
                yield f"{module}.{name}", value


def _smmus(
    tree: HostTree,
    host: HostTopology | None,
    release: str | None,
    log: Sequence[str],
    reader: _Reader,
) -> Iterator[tuple[int, SmmuHardware]]:
    """Yield the features of each SMMU of the topology, from its last line in the log."""
    if host is None:
        return
    ids = {int(smmu.base): smmu.id for smmu in host.smmus if smmu.base is not None}
    bases = reader.call(lambda: _bases(tree)) or {}
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


def _hardware(features: int, release: str | None, line: Evidence) -> SmmuHardware:
    match = _RELEASE.match(release or "")
    version = (int(match[1]), int(match[2])) if match else (0, 0)
    nests = version >= _NESTS_SINCE
    s2fwb = bool(features & _S2FWB) if nests else None
    evidence = [line]
    if s2fwb is False and version < _DETECTS_S2FWB_SINCE:
        evidence.append(
            Evidence(
                "/proc/sys/kernel/osrelease",
                f"{release}: Linux 6.13 and 6.14, except late updates of 6.14, do not detect S2FWB "
                "and treat it as missing",
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
    """Return the limit on locked memory of the first running daemon, in bytes."""
    for daemon in DAEMONS:
        pid = (text(tree, f"/run/{daemon}.pid") or "").strip()
        if not pid.isdigit() or text(tree, f"/proc/{pid}/comm") != daemon:
            continue
        match = _LIMIT.search(text(tree, f"/proc/{pid}/limits") or "")
        if match is not None:
            return NO_LIMIT if match[1] == "unlimited" else int(match[1])
    return None
