import json
import stat

from qemuhook.helpers import UUID

from vmm_msi.qemuhook import run_records
from vmm_msi.qemuhook.run_records import Journal, Step, note, read_all

TIME = "2026-01-02T03:04:05Z"


def step(operation, **fields):
    return Step(TIME, operation, "-", **fields)


def operations(folder):
    return [each.operation for each in read_all(folder)[0].steps]


def test_what_is_noted_is_read(tmp_path):
    folder = tmp_path / "run" / "hook"
    folder.parent.mkdir()
    steps = (step("prepare", problems=("a", "b"), refused=True), Step(TIME, "release", "failed"))
    for each in steps:
        note(UUID, "g", each, folder)
    assert read_all(folder) == [Journal(UUID, "g", steps)]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (file,) = folder.iterdir()
    assert file.name == f"{UUID}.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_run_begins_anew(tmp_path):
    for word in ("prepare", "start", "started", "stopped", "release", "prepare", "start"):
        note(UUID, "g", step(word), tmp_path)
    assert operations(tmp_path) == ["prepare", "start"]


def test_an_incoming_guest_is_prepared_in_the_same_run(tmp_path):
    for word in ("prepare", "release", "restore", "prepare", "start"):
        note(UUID, "g", step(word), tmp_path)
    assert operations(tmp_path) == ["restore", "prepare", "start"]


def test_it_stays_small(tmp_path):
    for _ in range(100):
        note(UUID, "g" * 9999, step("reconnect", problems=("x" * 9999,) * 99), tmp_path)
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size < 200_000
    assert operations(tmp_path) == ["reconnect"] * 32


def test_guests_that_came_and_went(tmp_path, monkeypatch):
    monkeypatch.setattr(run_records, "_FILES", 3)
    for number in range(6):
        note(f"{UUID[:-1]}{number}", f"g{number}", step("prepare"), tmp_path)
    assert [each.guest for each in read_all(tmp_path)] == ["g3", "g4", "g5"]


def test_what_is_no_journal_is_passed_over_and_replaced(tmp_path):
    file = tmp_path / f"{UUID}.json"
    for text in ("", "[", "[]", "null", '{"steps": 1}', "[" * 100_000, " " * (2 << 20), "\udcff"):
        file.write_text(text, errors="surrogateescape")
        assert read_all(tmp_path) == []
        note(UUID, "g", step("started"), tmp_path)
        assert operations(tmp_path) == ["started"]
        assert json.loads(file.read_text())["schema"] == 1


def test_a_uuid_that_is_none(tmp_path):
    note("../../etc/passwd", "g", step("prepare"), tmp_path)
    note("", "g", step("prepare"), tmp_path)
    assert list(tmp_path.iterdir()) == []
