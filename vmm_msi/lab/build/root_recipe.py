"""Build the lab's root: debootstrap for the base system, apt in it for libvirt and QEMU.

Both run in their own mount and PID namespaces, so their mounts and child processes end with them,
also after Ctrl-C or when the parent is killed.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vmm_msi.errors import LabError
from vmm_msi.lab import DEFAULT_SUITE
from vmm_msi.lab.build import host_tools
from vmm_msi.lab.build.command import PATH, contained, run_logged

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmm_msi.lab.build.progress import Progress

#: Increment when the same suite and packages must give a different tree.
VERSION = 1

#: libvirt with its QEMU and test drivers, QEMU for aarch64 and its UEFI.
PACKAGES = (
    "libvirt-clients",
    "libvirt-daemon",
    "libvirt-daemon-driver-qemu",
    "qemu-efi-aarch64",
    "qemu-system-arm",
)

#: Additional packages of the default suite's root: a Python that compiles for the emulated host's,
#: which is of the same suite, with the dependencies of libvirt's hook and its installer;
#: virt-install, whose XML is edited. Older suites do not have all of them.
TOOLKIT = (
    "libpython3-stdlib",
    "python3-lxml",
    "python3-minimal",
    "python3-msgspec",
    "virtinst",
)

#: The emulator of the machine itself, by Debian's name of the architecture. libvirt 9.0 reports
#: only its version (``src/qemu/qemu_driver.c`` qemuConnectGetVersion).
_OWN_EMULATORS = {"amd64": "qemu-system-x86", "arm64": "qemu-system-arm"}

#: Tools that the machine needs to build it.
TOOLS = ("chroot", "debootstrap", "mount", "setpriv", "unshare")

_SCRIPTS = Path(os.environ.get("DEBOOTSTRAP_DIR", "/usr/share/debootstrap"), "scripts")
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_LAST_LINES = 40

# deb-policy-rc.d: 101 forbids every action, so no package starts its service.
_POLICY = "#!/bin/sh\nexit 101\n"

# dpkg.cfg(5): exclude documentation.
_DPKG = """\
force-unsafe-io
path-exclude=/usr/share/doc/*
path-include=/usr/share/doc/*/copyright
path-exclude=/usr/share/info/*
path-exclude=/usr/share/locale/*
path-exclude=/usr/share/man/*
"""


@dataclass(frozen=True)
class BuildSpec:
    """What to build and where.

    :ivar tree: the folder to fill; its parent exists.
    :ivar suite: the Debian suite.
    :ivar architecture: Debian's name of the architecture.
    :ivar mirror: the address of a Debian mirror.
    :ivar log: file for the tools' output.
    """

    tree: Path
    suite: str
    architecture: str
    mirror: str
    log: Path


def packages(suite: str, architecture: str) -> list[str]:
    """Return the packages of a root of ``suite``, sorted.

    The default suite has what the lab needs; others are for trying older releases, and also have
    the machine's own emulator.
    """
    if suite == DEFAULT_SUITE:
        return sorted({*PACKAGES, *TOOLKIT})
    own = _OWN_EMULATORS.get(architecture)
    return sorted({*PACKAGES, *([] if own is None else [own])})


def build_tree(spec: BuildSpec, progress: Progress) -> dict[str, str]:
    """Build the tree and return the version of every package in it.

    :raise LabError: when a host tool is missing or a stage fails.
    """
    tools = host_tools.require_tools(TOOLS)
    inside = [*contained(f"--mount-proc={spec.tree}/proc"), tools["chroot"], f"{spec.tree}"]
    environment = {
        "PATH": PATH,
        "LC_ALL": "C.UTF-8",
        "DEBIAN_FRONTEND": "noninteractive",
        **host_tools.apt_proxies(),
    }
    spec.log.write_text("", encoding="utf-8")

    progress.stage(f"Debian {spec.suite} {spec.architecture}: base system (debootstrap)")
    bootstrap = [
        *(tools["debootstrap"], "--variant=minbase", f"--arch={spec.architecture}"),
        *(spec.suite, f"{spec.tree}", spec.mirror, f"{_script(spec.suite)}"),
    ]
    _run([*contained(), *bootstrap], environment, spec, progress)

    names = packages(spec.suite, spec.architecture)
    progress.stage(f"installing {' '.join(names)}")
    apt = ["apt-get", "-q", "-y", "-o", "Dpkg::Use-Pty=0", *host_tools.apt_options()]
    apt += _prepare(spec)
    install = [*apt, "--no-install-recommends", "install", *names]
    _run([*inside, *install], environment, spec, progress)

    progress.stage("tidying up")
    _run([*inside, "apt-get", "clean"], environment, spec, progress)
    _tidy(spec.tree)
    listing = ["dpkg-query", "--show", "--showformat", "${Package} ${Version}\\n"]
    printed = _run([*inside, *listing], environment, spec, progress)
    progress.clear()
    return dict(line.split(" ", 1) for line in printed if " " in line)


def upstream_version(version: str) -> str:
    """Return the part of a Debian version that upstream counts: ``1:11.1.2+ds-3`` is 11.1.2.

    :raise LabError: when there is no number in it.
    """
    match = re.match(r"(?:\d+:)?(\d+(?:\.\d+)*)", version)
    if match is None:
        raise LabError(f"reading a package version: {version!r} has no number; expected 12.8.0-1")
    return match[1]


def _script(suite: str) -> Path:
    """Return debootstrap's script for ``suite``, that of sid for an unknown suite."""
    script = _SCRIPTS / suite
    return script if script.exists() else _SCRIPTS / "sid"


def _prepare(spec: BuildSpec) -> list[str]:
    """Prepare the new tree for apt and return the options that apt needs in it."""
    tree = spec.tree
    policy = tree / "usr/sbin/policy-rc.d"
    policy.write_text(_POLICY, encoding="utf-8")
    policy.chmod(0o755)
    (tree / "etc/dpkg/dpkg.cfg.d/vmm-msi").write_text(_DPKG, encoding="utf-8")
    shutil.copyfile("/etc/hosts", tree / "etc/hosts")
    if spec.mirror.startswith("https:") and _CERTIFICATES.is_file():
        shutil.copyfile(_CERTIFICATES, tree / "tmp/ca.crt")
        return ["-o", "Acquire::https::CAInfo=/tmp/ca.crt"]
    return []


def _tidy(tree: Path) -> None:
    """Remove this machine's files and downloads; add a folder that libvirt needs."""
    (tree / "etc/hosts").write_text("127.0.0.1 localhost\n", encoding="utf-8")
    (tree / "etc/hostname").write_text("lab\n", encoding="utf-8")
    (tree / "etc/resolv.conf").unlink(missing_ok=True)
    (tree / "tmp/ca.crt").unlink(missing_ok=True)
    shutil.rmtree(tree / "var/lib/apt/lists")
    (tree / "var/lib/apt/lists").mkdir()
    # The installed packages of libvirt 9.0 do not contain it.
    (tree / "var/lib/libvirt").mkdir(exist_ok=True)


def _run(
    command: Sequence[str], environment: Mapping[str, str], spec: BuildSpec, progress: Progress
) -> list[str]:
    """Run one stage and return its last lines, or all lines of a listing.

    :raise LabError: when it fails, with the line that gives the reason.
    """
    return run_logged(
        command,
        doing=f"building the lab's root of {spec.suite} from {spec.mirror}",
        log=spec.log,
        environment=environment,
        watch=progress.step,
        keep=None if "dpkg-query" in command else _LAST_LINES,
    )
