"""Who may change a path: its components, links in it, owners and modes."""

from __future__ import annotations

import os
import stat
from contextlib import closing
from pathlib import Path

import pytest
from other_user import give_away, shared_folder

from vmm_msi import ownership


def walked(path):
    with closing(ownership.components(path)) as walk:
        return [(component.path, component.is_last) for component in walk]


def test_components(tmp_path, monkeypatch):
    real = tmp_path / "a/b"
    real.mkdir(parents=True)
    (tmp_path / "relative").symlink_to("a/../a/b")
    (tmp_path / "absolute").symlink_to(tmp_path / "relative")
    (real / "here").symlink_to(".")
    (real / "root").symlink_to("/")
    upper = [(path, False) for path in reversed(tmp_path.parents)]
    upper.append((tmp_path, False))
    through = [(tmp_path / "a", False), (tmp_path, False), (tmp_path / "a", False), (real, True)]
    assert walked(real) == [*upper, (tmp_path / "a", False), (real, True)]
    assert walked(tmp_path / "relative") == [*upper, (tmp_path / "relative", False), *through]
    assert walked(tmp_path / "absolute") == [
        *upper,
        (tmp_path / "absolute", False),
        *upper[1:],
        (tmp_path / "relative", False),
        *through,
    ]
    assert walked(real / "here")[-2:] == [(real / "here", False), (real, True)]
    assert walked(real / "root")[-2:] == [(real / "root", False), (Path("/"), True)]
    assert walked(Path("/")) == [(Path("/"), True)]
    monkeypatch.chdir(real)
    assert walked(Path("..")) == [*walked(real)[:-1], (real, False), (tmp_path / "a", True)]


@pytest.mark.parametrize("path", ["missing/x", "file/x", "loop"])
def test_a_path_that_cannot_be_walked(tmp_path, path):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    opened = len([*Path("/proc/self/fd").iterdir()])
    with pytest.raises(OSError, match=r"No such file|Not a directory|Too many levels"):
        walked(tmp_path / path)
    with pytest.raises(OSError, match=r"No such file|Not a directory|Too many levels"):
        ownership.open_folder(tmp_path / path)
    assert len([*Path("/proc/self/fd").iterdir()]) == opened


@pytest.mark.parametrize(
    ("mode", "inner", "outer"),
    [
        (0o755, "", ""),
        (0o700, "", ""),
        (0o1777, "is writable by every user", ""),
        (0o777, "is writable by every user", "is writable by every user"),
        (0o1770, "is writable by group", ""),
        (0o775, "is writable by group", "is writable by group"),
    ],
)
def test_modes(tmp_path, monkeypatch, mode, inner, outer):
    """Others may add entries to a sticky folder, but not replace those in it."""
    if os.geteuid():
        tmp_path.chmod(0o700)
        monkeypatch.setattr(ownership, "_is_private_group", lambda *_: False)
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    folder.chmod(mode)
    for path, reason in ((folder, inner), (folder / "below", outer)):
        weak = ownership.weakness(path)
        assert str(weak or "").startswith(f"{folder} {reason}" if reason else "")
        assert bool(weak) == bool(reason)


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_another_owner(tmp_path, monkeypatch, kind):
    path = tmp_path / "x"
    (tmp_path / "target").mkdir()
    if os.geteuid():
        kind = "link"  # the folders above would belong to another user, too
    create = {
        "file": path.touch,
        "folder": path.mkdir,
        "link": lambda: path.symlink_to(tmp_path / "target"),
    }
    create[kind]()
    assert ownership.weakness(path) is None
    user = give_away(path, monkeypatch)
    assert f"belongs to user {user}" in str(ownership.weakness(path))


def test_a_private_group(tmp_path, monkeypatch):
    """With umask 002 each file of a user is writable by the group of that user alone."""
    tmp_path.chmod(0o775)
    status = tmp_path.stat()
    for user, group, reason in ((1000, 1000, ""), (1000, 100, "group 100"), (0, 0, "group 0")):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        fields = list(status)
        fields[stat.ST_UID], fields[stat.ST_GID] = user, group
        reasons = ownership.reason_of(os.stat_result(fields), ownership.trusted_owners())
        assert reasons.endswith(reason)
        assert bool(reasons) == bool(reason)


def test_a_folder_is_not_opened_through_a_link_of_another_user(tmp_path, monkeypatch):
    with shared_folder() as shared:
        (shared / "mine").symlink_to(tmp_path)
        os.close(ownership.open_folder(shared / "mine"))
        (shared / "link").symlink_to(tmp_path)
        user = give_away(shared / "link", monkeypatch)
        with pytest.raises(PermissionError, match=rf"{shared}/link is a link of user {user}"):
            ownership.open_folder(shared / "link")
    with pytest.raises(NotADirectoryError):
        ownership.open_folder(Path("/dev/null"))


@pytest.fixture
def program(tmp_path):
    """A program in a folder of its own."""
    path = tmp_path / "bin/program"
    path.parent.mkdir()
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_a_program_is_found(program, tmp_path, monkeypatch):
    first = tmp_path / "first"
    (first / "program").mkdir(parents=True)  # a folder is not a program
    (first / "data").touch()
    monkeypatch.setenv("PATH", f"/nowhere:{first}:{program.parent}:/bin")
    assert ownership.find_program("program") == str(program)
    assert ownership.find_program("data") is None
    assert ownership.find_program("program", str(first)) is None
    assert ownership.find_program("sh", "/usr/bin:/bin") in {"/usr/bin/sh", "/bin/sh"}
    monkeypatch.delenv("PATH")
    assert ownership.find_program("sh") in {"/usr/bin/sh", "/bin/sh"}


@pytest.mark.parametrize("search", ["", ":/bin", "/bin:", "/nowhere::/bin", ".", "bin", "../bin"])
def test_the_current_folder_is_not_searched(program, monkeypatch, search):
    monkeypatch.chdir(program.parent)
    assert ownership.find_program("program", search) is None


@pytest.mark.parametrize("kind", ["folder", "file", "owner", "owner of a link"])
def test_a_program_that_another_user_may_change_is_not_found(program, tmp_path, monkeypatch, kind):
    good = tmp_path / "good"
    good.symlink_to("/bin")
    search = f"{program.parent}:{tmp_path}/good"
    program = program.rename(program.with_name("sh"))
    assert ownership.find_program("sh", search) == str(program)
    if kind == "folder":
        program.parent.chmod(0o777)
    elif kind == "file":
        program.chmod(0o777)
    else:
        if kind == "owner of a link":
            program.unlink()
            program.symlink_to("/bin/sh")
        if os.geteuid():
            monkeypatch.setattr(ownership, "trusted_owners", lambda: frozenset({0}))
            search = f"{program.parent}:/bin"
        else:
            give_away(program, monkeypatch)
    assert ownership.find_program("sh", search) in {f"{good}/sh", "/bin/sh"}
