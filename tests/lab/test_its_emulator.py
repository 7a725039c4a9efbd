"""The QEMU of hosts with several ITSes: its cache key, its patch, and the choice of a source."""

from __future__ import annotations

import importlib.resources
import json
import re
from types import SimpleNamespace

import pytest

from vmm_msi.cli import main
from vmm_msi.errors import LabError
from vmm_msi.lab.build import its_emulator
from vmm_msi.lab.build.progress import Progress
from vmm_msi.lab.guest import its_log
from vmm_msi.lab.machine import board
from vmm_msi.lab.machine.shape import RANGES

FILES = importlib.resources.files("vmm_msi.lab.qemu")


def place(cache, suite="forky"):
    return its_emulator._place(suite, cache)


def test_key_depends_on_suite_files_and_options(tmp_path, monkeypatch):
    names = [place(tmp_path).path.name, place(tmp_path, "sid").path.name]
    assert names[0].startswith("qemu-forky-")
    original = its_emulator._file
    for changed in ("its-count.patch", "devices.mak"):
        monkeypatch.setattr(
            its_emulator, "_file", lambda name, to=changed: original(name) + b"x" * (name == to)
        )
        names.append(place(tmp_path).path.name)
    monkeypatch.undo()
    monkeypatch.setattr(its_emulator, "OPTIONS", (*its_emulator.OPTIONS, "--enable-debug"))
    names.append(place(tmp_path).path.name)
    monkeypatch.undo()
    monkeypatch.setattr(its_emulator, "VERSION", its_emulator.VERSION + 1)
    names.append(place(tmp_path).path.name)
    assert len(set(names)) == len(names)


def test_patch_names_its_licence_beside_the_text():
    patch = (FILES / "its-count.patch").read_text()
    for text in (patch, (FILES / "devices.mak").read_text()):
        assert "SPDX-License-Identifier: GPL-2.0-or-later" in text.partition("\n\n")[0]
    assert "GNU GENERAL PUBLIC LICENSE" in (FILES / "COPYING-GPL-2.0").read_text()


def test_patch_and_lab_agree(tmp_path):
    """On the bases of the ITSes, their number and the trace."""
    patch = (FILES / "its-count.patch").read_text()
    base, step = re.search(r"VIRT_GIC_ITS_EXTRA\] = +\{ (\w+), (\w+) \}", patch).groups()
    assert (int(base, 16), int(step, 16)) == (board._EXTRA_ITS, board._ITS_STEP)
    (most,) = re.findall(r"define VIRT_ITSES_MAX (\d+)", patch)
    assert RANGES["itses"] == (1, int(most))
    (event, form) = re.search(r'^\+(\w+)\(.*\) "(.*)', patch, re.MULTILINE).groups()
    assert event == its_log.EVENT
    line = re.sub(r"%u|0x%x|0x%\" PRIx64( \")?", "0x8090040", form).replace('" PRIx64', "")
    log = tmp_path / "its.log"
    log.write_text(f"{event} {line}\n")
    assert its_log.ItsLog(log).new() == {its_log.Msi(0x8090040, 0x8090040, 0x8090040): 1}


VERSIONS = {
    "forky": ["1:11.1.2+ds-3"],
    "sid": ["1:10.2.2+ds-1", "1:11.1.3+ds-1", "1:9.2.4+ds-1", "1:11.1.2+ds-3"],
}
#: Listed, but no longer on the mirror.
GONE = {"1:11.1.2+ds-3", "1:11.1.3+ds-1"}


class Apt:
    """A suite with sources, some of which cannot be fetched."""

    versions = VERSIONS
    gone = GONE

    def __init__(self, folder, suite, architecture, log, progress, *, sources):
        assert sources
        self.suite = suite

    def update(self):
        if self.versions.get(self.suite) is None:
            raise LabError("reading: no such suite")

    def source_versions(self, package):
        assert package == "qemu"
        return self.versions[self.suite]

    def fetch_source(self, package, version, folder):
        if version in self.gone:
            raise LabError("404  Not Found")
        return folder / version


@pytest.fixture
def build(tmp_path, monkeypatch):
    """A build whose apt is :class:`Apt` and which notes what it would unpack."""
    monkeypatch.setattr(its_emulator, "PrivateApt", Apt)
    building = its_emulator._Build(tmp_path, tmp_path / "log", "forky", Progress(None))
    unpacked = []
    monkeypatch.setattr(building, "_unpack", unpacked.append)
    return SimpleNamespace(run=building._lay_source, unpacked=unpacked, building=building)


def test_newest_source_that_can_be_fetched_is_taken(build, monkeypatch):
    build.run()
    assert [path.name for path in build.unpacked] == ["1:10.2.2+ds-1"]
    monkeypatch.setattr(Apt, "gone", {"1:11.1.3+ds-1"})
    build.run()
    assert build.unpacked[-1].name == "1:11.1.2+ds-3"


def test_source_that_does_not_take_the_patch_is_passed_over(build, monkeypatch):
    monkeypatch.setattr(Apt, "gone", set())

    def refuse_11(archive):
        if "11.1" in archive.name:
            raise LabError("applying its-count.patch: 1 out of 6 hunks FAILED")
        build.unpacked.append(archive)

    monkeypatch.setattr(build.building, "_unpack", refuse_11)
    build.run()
    assert [path.name for path in build.unpacked] == ["1:10.2.2+ds-1"]


def test_sources_that_cannot_be_fetched_are_named(build, monkeypatch):
    monkeypatch.setattr(Apt, "gone", {*GONE, "1:10.2.2+ds-1"})
    with pytest.raises(LabError) as caught:
        build.run()
    message = str(caught.value)
    assert message.startswith("building the lab's QEMU: Debian has no source of QEMU 10.2 or later")
    assert "use one ITS, or try again later" in message
    for version in ("11.1.3", "11.1.2", "10.2.2"):
        assert f"1:{version}+ds" in message
    # Too old for an SMMU behind each expander bus.
    assert "9.2.4" not in message
    assert build.unpacked == []


def test_suite_without_sources_is_named(build, monkeypatch):
    monkeypatch.setattr(Apt, "versions", {"forky": []})
    with pytest.raises(LabError, match="sid: reading: no such suite"):
        build.run()


def test_command_builds_it_only_on_request(tmp_path, capsys):
    assert main(["lab", "build", "--itses", "--suite", "No Suite", "--cache", str(tmp_path)]) == 2
    assert "is not a Debian suite" in capsys.readouterr().err


def test_incomplete_entry_is_not_used(tmp_path):
    entry = place(tmp_path).path
    entry.mkdir()
    (entry / "qemu-system-aarch64").write_bytes(b"ELF")
    assert its_emulator.find_its_emulator(cache=tmp_path) is None
    marker = {"version": "10.2.2", "bytes": 3, "built": "now"}
    (entry / "qemu.json").write_text(json.dumps(marker))
    emulator = its_emulator.find_its_emulator(cache=tmp_path)
    assert (emulator.version, emulator.cached) == ("10.2.2", True)
    (entry / "qemu-system-aarch64").write_bytes(b"EL")
    assert its_emulator.find_its_emulator(cache=tmp_path) is None
