"""Files that ``-o`` names: complete or absent, and never what another user chose."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

import pytest
from other_user import attacker, give_away, shared_folder

from vmm_msi.errors import OutputError
from vmm_msi.output import check_target, output_file, write_output


@pytest.fixture
def victim(tmp_path):
    """A file that only its owner may change."""
    path = tmp_path / "victim"
    path.write_text("kept")
    return path


def refused(path, *, force):
    """Return why a file cannot be written, in advance and at once."""
    with pytest.raises(OutputError) as early:
        check_target(path, force=force)
    with pytest.raises(OutputError) as late:
        write_output(path, b"new", force=force)
    assert str(early.value) == str(late.value)
    return str(late.value).removeprefix(f"writing {path}: ")


def test_a_new_file(tmp_path):
    before = os.umask(0o022)
    try:
        write_output(tmp_path / "private", b"x")
        with output_file(tmp_path / "public", force=False, mode=0o666) as file:
            file.write(b"y")
            assert not (tmp_path / "public").exists()
            (partial,) = (path for path in tmp_path.iterdir() if path.name.endswith(".partial"))
            assert stat.S_IMODE(partial.stat().st_mode) == 0o644
            assert "public" not in partial.name
    finally:
        os.umask(before)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "private": b"x",
        "public": b"y",
    }
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "public").stat().st_mode) == 0o644


def test_temporary_names_differ(tmp_path):
    names = set()
    for _ in range(20):
        with output_file(tmp_path / "x", force=True):
            names |= {path.name for path in tmp_path.iterdir()} - {"x"}
    assert len(names) == 20


def test_an_existing_file_needs_force(victim):
    assert refused(victim, force=False) == "it exists already; --force overwrites it"
    assert victim.read_text() == "kept"
    write_output(victim, b"new", force=True)
    assert victim.read_text() == "new"
    assert list(victim.parent.iterdir()) == [victim]


def test_a_file_that_appears_meanwhile_is_kept(tmp_path):
    path = tmp_path / "x"
    with contextlib.ExitStack() as stack:
        stack.enter_context(pytest.raises(OutputError, match="it exists already"))
        stack.enter_context(output_file(path, force=False)).write(b"new")
        path.write_text("kept")
    assert path.read_text() == "kept"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP])
@pytest.mark.parametrize("exists", [False, True])
def test_a_file_system_without_hard_links(tmp_path, monkeypatch, code, exists):
    def link(*_args, **_options):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", link)
    path = tmp_path / "x"
    with contextlib.ExitStack() as stack:
        if exists:
            stack.enter_context(pytest.raises(OutputError, match="it exists already"))
        with output_file(path, force=False) as file:
            file.write(b"new")
            if exists:
                path.write_text("kept")
    assert path.read_text() == ("kept" if exists else "new")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["own", "another user's"])
@pytest.mark.parametrize("target", ["victim", "missing", "/dev/null"])
def test_a_link_is_never_followed(shared, victim, monkeypatch, kind, target):
    """With --force the link itself is replaced."""
    link = shared / "out"
    link.symlink_to(victim.parent / target)
    if kind != "own":
        give_away(link, monkeypatch)
    assert refused(link, force=False) == "it exists already; --force overwrites it"
    assert link.is_symlink()
    write_output(link, b"new", force=True)
    assert not link.is_symlink()
    assert link.read_bytes() == b"new"
    assert victim.read_text() == "kept"
    assert list(victim.parent.iterdir()) == [victim]
    assert list(shared.iterdir()) == [link]


def test_a_folder_behind_a_link_of_another_user(shared, victim, monkeypatch):
    (shared / "folder").symlink_to(victim.parent)
    user = give_away(shared / "folder", monkeypatch)
    for force in (False, True):
        reason = refused(shared / "folder/new", force=force)
        assert reason == f"{shared}/folder is a link of user {user}"
    assert list(victim.parent.iterdir()) == [victim]


def test_another_user_cannot_redirect_the_file(victim):
    """Another user may replace every entry of the folder, and replaces each with a link."""
    with shared_folder(0o777) as shared:

        def redirect():
            for path in (*shared.iterdir(), shared / "out"):
                with contextlib.suppress(OSError):
                    path.unlink()
                with contextlib.suppress(OSError):
                    path.symlink_to(victim)

        with attacker(redirect):
            for number in range(40):
                with contextlib.suppress(OutputError):
                    write_output(shared / "out", b"new", force=bool(number % 2))
    assert victim.read_text() == "kept"
    assert stat.S_IMODE(victim.stat().st_mode) == 0o644


def test_a_pipe_of_the_caller(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OutputError, match=r"no process reads this pipe; start the reader first$"):
        write_output(pipe, b"new")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_output(pipe, b"new")
        assert os.read(reader, 10) == b"new"
    finally:
        os.close(reader)
    assert pipe.is_fifo()


@pytest.mark.parametrize("has_reader", [False, True])
def test_a_pipe_of_another_user(shared, monkeypatch, has_reader):
    pipe = shared / "pipe"
    os.mkfifo(pipe, 0o666)
    user = give_away(pipe, monkeypatch)
    with contextlib.ExitStack() as stack:
        if has_reader:
            reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
            stack.callback(os.close, reader)
        for force in (False, True):
            assert refused(pipe, force=force) == (
                f"it is a pipe or device of user {user}; use one of your own, or name a new file"
            )
    assert pipe.is_fifo()


def test_a_device_of_root(tmp_path):
    write_output(Path("/dev/null"), b"x")
    with pytest.raises(OutputError, match=r"^writing /dev/full: No space left on device$"):
        write_output(Path("/dev/full"), b"x")


@pytest.mark.parametrize("name", ["/dev/fd/{}", "/proc/self/fd/{}"])
def test_a_descriptor_of_this_process(name):
    """As the shell's >(…) names it; the pipe may belong to the user who called sudo."""
    reader, writer = os.pipe()
    write_output(Path(name.format(writer)), b"new", force=True)
    os.close(writer)
    assert os.read(reader, 10) == b"new"
    os.close(reader)
    path = Path(name.format(writer))
    with pytest.raises(OutputError, match=f"^writing {path}: Bad file descriptor$"):
        write_output(path, b"new")


@pytest.mark.parametrize("name", ["", ".", "..", "/", "folder", "folder/.", "folder/.."])
def test_a_folder(tmp_path, monkeypatch, name):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    assert refused(Path(name), force=True) == "it is a folder; name a file"
    assert list(tmp_path.rglob("*")) == [tmp_path / "folder"]


def test_nothing_stays_behind_after_an_error(tmp_path):
    opened = len([*Path("/proc/self/fd").iterdir()])
    with contextlib.ExitStack() as stack:
        stack.enter_context(pytest.raises(ZeroDivisionError))
        stack.enter_context(output_file(tmp_path / "x", force=True)).write(b"half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    assert len([*Path("/proc/self/fd").iterdir()]) == opened
