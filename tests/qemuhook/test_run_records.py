import json
import os
import stat

import pytest
from qemuhook.helpers import UUID

from vmm_msi.qemuhook import run_records
from vmm_msi.qemuhook.run_records import HookCall, RunRecord, add_call, read_all

TIME = "2026-01-02T03:04:05Z"


def call(operation, **fields):
    return HookCall(TIME, operation, "-", **fields)


def operations(folder):
    return [call.operation for call in read_all(folder)[0].steps]


def test_a_record_is_read_back(tmp_path):
    folder = tmp_path / "run" / "hook"
    folder.parent.mkdir()
    calls = (
        call("prepare", problems=("a", "b"), refused=True),
        HookCall(TIME, "release", "failed"),
    )
    for one in calls:
        add_call(UUID, "g", one, folder)
    assert read_all(folder) == [RunRecord(UUID, "g", calls)]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (file,) = folder.iterdir()
    assert file.name == f"{UUID}.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize("suffix", ["json", "new"])
def test_records_are_for_their_owner_alone(tmp_path, suffix):
    """Whatever an earlier call left, and whatever the umask of libvirt is."""
    victim = tmp_path / "victim"
    victim.write_text("kept")
    records = tmp_path / "records"
    before = os.umask(0)
    try:
        for leave in (lambda path: path.touch(0o666), lambda path: path.symlink_to(victim)):
            records.mkdir(exist_ok=True)
            left = records / f"{UUID}.{suffix}"
            left.unlink(missing_ok=True)
            leave(left)
            add_call(UUID, "g", call("prepare"), records)
            (file,) = records.iterdir()
            assert file.name == f"{UUID}.json"
            assert stat.S_IMODE(file.lstat().st_mode) == 0o600
            assert not file.is_symlink()
    finally:
        os.umask(before)
    assert victim.read_text() == "kept"


def test_a_new_run_replaces_the_record(tmp_path):
    for operation in ("prepare", "start", "started", "stopped", "release", "prepare", "start"):
        add_call(UUID, "g", call(operation), tmp_path)
    assert operations(tmp_path) == ["prepare", "start"]


def test_an_incoming_guest_is_prepared_in_the_same_run(tmp_path):
    for operation in ("prepare", "release", "restore", "prepare", "start"):
        add_call(UUID, "g", call(operation), tmp_path)
    assert operations(tmp_path) == ["restore", "prepare", "start"]


def test_a_record_is_bounded(tmp_path):
    for _ in range(100):
        add_call(UUID, "g" * 9999, call("reconnect", problems=("x" * 9999,) * 99), tmp_path)
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size < 200_000
    assert operations(tmp_path) == ["reconnect"] * 32


def test_the_number_of_records_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(run_records, "_FILES", 3)
    for number in range(6):
        add_call(f"{UUID[:-1]}{number}", f"g{number}", call("prepare"), tmp_path)
    assert [record.guest for record in read_all(tmp_path)] == ["g3", "g4", "g5"]


def test_invalid_files_are_skipped_and_replaced(tmp_path):
    file = tmp_path / f"{UUID}.json"
    for text in ("", "[", "[]", "null", '{"steps": 1}', "[" * 100_000, " " * (2 << 20), "\udcff"):
        file.write_text(text, errors="surrogateescape")
        assert read_all(tmp_path) == []
        add_call(UUID, "g", call("started"), tmp_path)
        assert operations(tmp_path) == ["started"]
        assert json.loads(file.read_text())["schema"] == 1


def test_invalid_uuids(tmp_path):
    add_call("../../etc/passwd", "g", call("prepare"), tmp_path)
    add_call("", "g", call("prepare"), tmp_path)
    assert list(tmp_path.iterdir()) == []
