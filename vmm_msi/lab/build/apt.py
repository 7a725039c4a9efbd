"""Run a private apt to fetch packages: no root, any suite, any architecture.

Its lists, its package cache and its status file (nothing installed) are in one folder; from the
machine's apt it takes only the mirror and its options (``host_tools``). apt verifies downloads
against Debian's archive keyring (apt-secure(8), ``signed-by`` of sources.list(5)).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from vmm_msi.errors import LabError
from vmm_msi.lab import DEFAULT_SUITE
from vmm_msi.lab.build import host_tools
from vmm_msi.lab.build.command import PATH, contained, run_logged

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm_msi.lab.build.progress import Progress

_KEYRINGS = (
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
    Path("/usr/share/keyrings/debian-archive-keyring.pgp"),
)

# apt.conf(5). The file named by APT_CONFIG is read first, so it keeps apt from reading the
# machine's own files and from running their hooks.
_CONFIG = """\
Dir::Etc::main "/dev/null";
Dir::Etc::parts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::State "{folder}/state";
Dir::State::status "{folder}/state/status";
Dir::Cache "{folder}/cache";
Dir::Log "{folder}/log";
APT::Architecture "{architecture}";
APT::Architectures {{ "{architecture}"; }};
APT::Install-Recommends "false";
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::Retries "3";
APT::Update::Error-Mode "any";
"""


class PrivateApt:
    """An apt with its own folder.

    :param folder: its state, cache and configuration; created when missing.
    :param suite: the Debian suite it reads.
    :param architecture: Debian's name of the architecture it resolves for.
    :param log: file for apt's output.
    :param sources: it reads the suite's source packages, not its binary packages.
    """

    def __init__(
        self,
        folder: Path,
        suite: str,
        architecture: str,
        log: Path,
        progress: Progress,
        *,
        sources: bool = False,
    ) -> None:
        self.archives = folder / "cache/archives"
        self._folder = folder
        self._suite = suite
        self._architecture = architecture
        self._log = log
        self._progress = progress
        self._mirror = host_tools.apt_mirror()
        self._type = "deb-src" if sources else "deb"

    def update(self) -> None:
        """Fetch the suite's package lists.

        :raise LabError: when the archive keyring is missing or the lists cannot be fetched.
        """
        folder = self._folder
        for name in ("state/lists/partial", "cache/archives/partial", "log"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "state/status").touch()
        keyring = next((path for path in _KEYRINGS if path.exists()), None)
        if keyring is None:
            raise LabError(
                f"reading Debian {self._suite}: there is no {_KEYRINGS[0]}; "
                "apt-get install debian-archive-keyring"
            )
        config = _CONFIG.format(folder=folder, architecture=self._architecture)
        (folder / "apt.conf").write_text(config, encoding="utf-8")
        (folder / "sources.list").write_text(
            f"{self._type} [signed-by={keyring}] {self._mirror} {self._suite} main\n",
            encoding="utf-8",
        )
        self._apt("update")

    def newest(self, prefix: str) -> str:
        """Return the name ``prefix`` + version with the highest version.

        :raise LabError: when there is no such package.
        """
        versions = {}
        for line in self._run(["apt-cache", "pkgnames", prefix], None):
            version = line.strip().removeprefix(prefix)
            if re.fullmatch(r"\d+(\.\d+)*", version):
                versions[tuple(map(int, version.split(".")))] = version
        if not versions:
            raise LabError(
                f"looking in Debian {self._suite}: no package is named {prefix}VERSION; "
                f"use --suite {DEFAULT_SUITE}"
            )
        return prefix + versions[max(versions)]

    def download(self, packages: Iterable[str]) -> list[Path]:
        """Fetch packages with all dependencies and return the files, sorted.

        Files that are already there are not fetched again; files of other packages are removed.

        :raise LabError: when a package is missing or cannot be fetched.
        """
        names = [*packages]
        # Nothing is installed here, so apt fetches all dependencies.
        listed = self._apt("install", "--print-uris", *names, keep=None)
        uris = [line.split() for line in listed if line.startswith("'")]
        file_names = {words[1] for words in uris if len(words) > 1}
        for old in self.archives.glob("*.deb"):
            if old.name not in file_names:
                old.unlink()
        self._apt("install", "--download-only", *names)
        return sorted(self.archives.glob("*.deb"))

    def fetch(self, package: str, folder: Path) -> Path:
        """Fetch one package without dependencies into ``folder`` and return the file.

        An interrupted download is completed.

        :raise LabError: when it is missing or cannot be fetched.
        """
        listed = self._apt("download", "--print-uris", package)
        names = [line.split()[1] for line in listed if line.startswith("'")]
        self._apt("download", package, folder=folder)
        return folder / names[0]

    def source_versions(self, package: str) -> list[str]:
        """Return the versions of a source package, as Debian counts; apt must read sources."""
        lines = self._run(["apt-cache", "showsrc", "--only-source", package], None)
        return [line.split()[1] for line in lines if line.startswith("Version: ")]

    def fetch_source(self, package: str, version: str, folder: Path) -> Path:
        """Fetch upstream's archive of a source package into ``folder`` and return the file.

        An interrupted download is completed.

        :raise LabError: when it cannot be fetched.
        """
        words = ("source", "--download-only", "--tar-only")
        named = f"{package}={version}"
        listed = self._apt(*words, "--print-uris", named)
        names = [line.split()[1] for line in listed if line.startswith("'")]
        self._apt(*words, named, folder=folder)
        return folder / next(name for name in names if ".orig.tar." in name)

    def _apt(self, *words: str, keep: int | None = 40, folder: Path | None = None) -> list[str]:
        command = ["apt-get", "-q", "-y", *host_tools.apt_options(), *words]
        return self._run(command, keep, folder)

    def _run(self, command: list[str], keep: int | None, folder: Path | None = None) -> list[str]:
        return run_logged(
            [*contained(), host_tools.find_tool(command[0]), *command[1:]],
            doing=f"reading Debian {self._suite} {self._architecture} from {self._mirror}",
            log=self._log,
            environment={
                **{name: value for name, value in os.environ.items() if name.endswith("_proxy")},
                "PATH": PATH,
                "LC_ALL": "C.UTF-8",
                "APT_CONFIG": f"{self._folder}/apt.conf",
            },
            watch=self._progress.step,
            folder=folder,
            keep=keep,
        )
