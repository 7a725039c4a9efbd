"""Folders of the lab that other users may write to, and links in the place of what is removed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from pathlib import Path

import pytest
from other_user import attacker, give_away, shared_folder

from vmm_msi.cli import main
from vmm_msi.errors import LabError
from vmm_msi.lab.build import cache as caches
from vmm_msi.lab.build import deb_tree, host_tools
from vmm_msi.lab.build.package_layer import package_layer
from vmm_msi.lab.machine import daemon, emulated_host, running


@pytest.fixture
def victim(tmp_path):
    """A folder that the lab must not touch, with what it looks for in its own folders."""
    folder = tmp_path / "victim"
    (folder / "kept").mkdir(parents=True)
    (folder / "lock").touch()
    (folder / "file").write_text("kept")
    yield folder
    assert sorted(path.name for path in folder.iterdir()) == ["file", "kept", "lock"]
    assert (folder / "file").read_text() == "kept"


def test_a_link_is_removed_and_not_its_target(tmp_path, victim):
    link = tmp_path / "link"
    for target in (victim, victim / "file", Path("nowhere")):
        link.symlink_to(target)
        host_tools.remove_folder(link)
        assert not link.is_symlink()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/link").symlink_to(victim)
    host_tools.remove_folder(tmp_path / "folder")
    assert list(tmp_path.iterdir()) == [victim]
    host_tools.remove_folder(tmp_path / "folder")
    host_tools.remove_folder(tmp_path / "missing/folder")


def test_nothing_is_removed_behind_the_link_of_another_user(tmp_path, victim, monkeypatch):
    with shared_folder() as shared:
        (shared / "link").symlink_to(tmp_path)
        user = give_away(shared / "link", monkeypatch)
        with pytest.raises(LabError) as caught:
            host_tools.remove_folder(shared / "link/victim")
        assert str(caught.value) == (
            f"removing {shared}/link/victim: {shared}/link is a link of user {user}"
        )


def test_another_user_cannot_redirect_a_removal(victim):
    """Another user may replace everything in the folder, and exchanges folders and links."""
    with shared_folder(0o777) as shared:
        target = shared / "run"

        def exchange():
            with contextlib.suppress(OSError):
                target.rename(shared / "away")
            with contextlib.suppress(OSError):
                target.symlink_to(victim)

        with attacker(exchange):
            end = time.monotonic() + 1.5
            while time.monotonic() < end:
                (shared / "new/below").mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(OSError):
                    (shared / "new").rename(target)
                with contextlib.suppress(LabError):
                    host_tools.remove_folder(target)


WEAK = {
    "sticky": (0o1777, "is writable by every user"),
    "every user's": (0o777, "is writable by every user"),
    "a group's": (0o770, "is writable by group 0"),
    "another user's": (0o700, "belongs to user"),
}


@pytest.fixture(params=[*WEAK, "below another user's", "a link"])
def weak(request, monkeypatch):
    """A folder that another user may change, and the words of the message about it."""
    kind = request.param
    with shared_folder() as shared:
        folder = shared / "folder"
        folder.mkdir()
        if kind in WEAK:
            mode, reason = WEAK[kind]
            folder.chmod(mode)
            if kind == "another user's":
                give_away(folder, monkeypatch)
            elif os.geteuid():
                reason = reason.removesuffix(" 0")
                monkeypatch.setattr("vmm_msi.ownership._is_private_group", lambda *_: False)
        elif kind == "a link":
            (shared / "link").symlink_to(folder)
            give_away(shared / "link", monkeypatch)
            folder, reason = shared / "link", "belongs to user"
        else:
            (folder / "cache").mkdir()
            give_away(folder, monkeypatch)
            folder, reason = folder / "cache", "belongs to user"
        yield folder, reason


def never(*_):
    pytest.fail("it was used")


def test_a_weak_cache_is_refused(weak, victim):
    """Whatever is in it: links to a victim, or an entry that looks complete."""
    folder, reason = weak
    place = caches.entry(folder, "thing", "the thing", ("word",), {"key": "one"})
    other = caches.entry(folder, "thing", "the thing", ("word",), {"key": "two"})
    for path in (place.path, place.work, other.work):
        path.symlink_to(victim)
    with pytest.raises(LabError, match=rf"^building the thing: .* {reason}.* --cache"):
        caches.fill(place, never, never)
    with pytest.raises(LabError, match=rf"^packing vmm-msi .* {reason}.* --cache"):
        package_layer(_Root(), folder)
    assert all(path.is_symlink() for path in (place.path, place.work, other.work))


class _Root:
    """A root of which only the Python is looked at."""

    path = Path("/")


@pytest.fixture(autouse=True)
def _python(monkeypatch):
    monkeypatch.setattr("vmm_msi.lab.build.bytecode.python_version", lambda _path: "3.11")


def test_links_in_the_users_own_cache_are_removed(tmp_path, victim):
    place = caches.entry(tmp_path / "cache", "thing", "the thing", ("word",), {"key": "one"})
    place.path.parent.mkdir()
    for path in (place.path, place.work):
        path.symlink_to(victim)
    ready = []

    def build(work):
        (work / "content").touch()
        ready.append(work)
        return work

    assert caches.fill(place, lambda: bool(ready) or None, build) == (True, False)
    assert [path.name for path in place.path.iterdir()] == ["content"]


def test_a_weak_run_folder_is_refused(weak, victim, monkeypatch, capfd):
    folder, reason = weak
    (folder / "old").symlink_to(victim)
    (folder / "host.lock").touch()
    monkeypatch.setenv(daemon.RUN_FOLDER_VARIABLE, str(folder))
    words = rf"^using the lab's run folder: .* {reason}.*{daemon.RUN_FOLDER_VARIABLE}"
    for use in (running.run_folder, running.running, running.keeper_pid, running.take_lock):
        with pytest.raises(LabError, match=words):
            use()
    with pytest.raises(LabError, match=words):
        daemon._new_run_folder(folder)
    for command in ("down", "status"):
        assert main(["lab", command]) == LabError.exit_code
        out, err = capfd.readouterr()
        assert out == ""
        assert err.startswith("vmm-msi lab: using the lab's run folder: ")
    assert (folder / "old").is_symlink()


def test_a_link_in_the_run_folder_stays(tmp_path, victim):
    base = tmp_path / "run"
    (base / "dead").mkdir(parents=True)
    (base / "dead/lock").touch()
    (base / "link").symlink_to(victim)
    run, lock = daemon._new_run_folder(base)
    lock.close()
    names = {path.name for path in base.iterdir()}
    assert names == {run.name, "link", ".lock"}
    assert stat.S_IMODE(run.stat().st_mode) == 0o700


def test_run_files_are_for_their_owner(tmp_path, monkeypatch):
    """Who can open the lock file for reading could hold a lock that keeps the lab from starting."""
    monkeypatch.setenv(daemon.RUN_FOLDER_VARIABLE, str(tmp_path))
    (tmp_path / "host.lock").touch(0o644)
    (tmp_path / "host.json").touch(0o644)
    (tmp_path / "host.json.new").symlink_to("elsewhere")
    before = os.umask(0)
    try:
        assert running.take_lock()
        running.write_state("starting")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.lstat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"host.lock": 0o600, "host.json": 0o600}


def test_only_folders_of_logs_are_removed(tmp_path, victim):
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "libvirtd.log").touch()
    kept = tmp_path / "cache/lab-logs"
    (kept / "0-of-the-user").mkdir(parents=True)
    (kept / "20200101T000000.000000Z").symlink_to(victim)
    for number in range(12):
        assert emulated_host.keep_logs(logs, kept / f"20260101T0000{number:02}.000000Z")
    names = sorted(path.name for path in kept.iterdir())
    assert names[0] == "0-of-the-user"
    assert names[1:] == [f"20260101T0000{number:02}.000000Z" for number in range(2, 12)]


def test_a_link_out_of_a_tree_is_not_followed(tmp_path, victim):
    tree = tmp_path / "tree"
    (tree / "usr/share/doc/package").mkdir(parents=True)
    (tree / "share").symlink_to("usr/share")
    (tree / "out").symlink_to(victim)
    deb_tree.trim(tree, ["share/doc/*", "out/*", "missing/*"])
    assert list((tree / "usr/share/doc").iterdir()) == []


def test_another_user_cannot_lock_the_cache_or_the_run_folder():
    """The attack: open every lock file for reading, or create it, and lock it."""
    before = os.umask(0)
    try:
        with shared_folder(0o755) as shared:
            place = caches.entry(shared / "cache", "thing", "the thing", (), {})
            base = shared / "run"
            for path in (place.path.with_name(f"{place.path.name}.lock"), base / ".lock"):
                path.parent.mkdir(mode=0o755)
                path.touch(0o666)

            def lock_all():
                paths = []
                with contextlib.suppress(OSError):
                    paths += shared.rglob("*lock")
                for path in [*paths, place.path.with_name(f"{place.path.name}.lock")]:
                    with contextlib.suppress(OSError):
                        fcntl.flock(os.open(path, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)

            def fill():
                return caches.fill(place, lambda: None, lambda work: work)

            # Once, as after an update from a release that created them for every user.
            for _ in range(2):
                with contextlib.suppress(LabError):
                    fill()
                daemon._new_run_folder(base)[1].close()
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in shared.rglob("*lock")}
            assert set(modes.values()) == {0o600}
            with attacker(lock_all) if os.geteuid() == 0 else contextlib.nullcontext():
                for _ in range(20):
                    with contextlib.suppress(LabError):
                        fill()
                    daemon._new_run_folder(base)[1].close()
    finally:
        os.umask(before)
