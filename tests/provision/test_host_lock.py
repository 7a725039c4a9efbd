"""The host lock: one holder at a time, released on exit, and lock files that are not usable."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from other_user import attacker, give_away, shared_folder
from provision.helpers import A, B, attach, plan, texts

from vmm_msi import ownership
from vmm_msi.errors import HypervisorError
from vmm_msi.provision import apply_change, host_lock

HOST = "some-host"


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """The folder of lock files, root's or the user's."""
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    monkeypatch.setattr(host_lock, "FOLDER", runtime / "vmm-msi")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    return runtime / "vmm-msi"


@pytest.fixture
def path(folder):
    """Return the path of the lock file, which does not exist."""
    with host_lock.held(HOST):
        (path,) = folder.iterdir()
    path.unlink()
    return path


def in_another_process(folder, body):
    """Start Python with ``body``, which can use ``host_lock``; return it after its first line."""
    code = (
        "import os, sys, time\nfrom pathlib import Path\nfrom vmm_msi.provision import host_lock\n"
        f"host_lock.FOLDER = Path({str(folder)!r})\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code + body], stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )
    assert child.stdout.readline() == b"now\n"
    return child


HOLD = f"with host_lock.held({HOST!r}):\n    print('now', flush=True)\n    sys.stdin.read()\n"


def test_one_at_a_time(folder):
    with in_another_process(folder, HOLD) as child:
        with (
            pytest.raises(HypervisorError) as caught,
            host_lock.held(HOST, timeout_s=0.05),
        ):
            pytest.fail("two processes hold the lock")
        (path,) = folder.iterdir()
        assert str(caught.value) == (
            f"locking the guests of {HOST}: another process has locked {path} for more than 0 s; "
            f"fuser {path} shows which"
        )
        # Another host has another lock.
        with host_lock.held("other-host", timeout_s=0):
            pass
        child.stdin.close()
        assert child.wait(10) == 0
    with host_lock.held(HOST, timeout_s=0):
        pass


def test_a_killed_process_releases_the_lock(folder):
    with in_another_process(folder, HOLD) as child:
        child.kill()
        child.wait(10)
        with host_lock.held(HOST, timeout_s=0):
            pass


def test_a_forked_child_does_not_keep_the_lock(folder):
    body = (
        f"with host_lock.held({HOST!r}):\n    child = os.fork()\n    if not child:\n"
        "        sys.stdin.read()\n        os._exit(0)\n"
        "print('now', flush=True)\nos.waitpid(child, 0)\n"
    )
    with in_another_process(folder, body) as child:
        with host_lock.held(HOST, timeout_s=0):
            pass
        child.stdin.close()
        assert child.wait(10) == 0


def test_a_removed_lock_file_is_created_again(folder, path):
    """The existing file is locked, so that the next process waits for it."""
    with in_another_process(folder, HOLD) as child:
        path.unlink()
        with host_lock.held(HOST, timeout_s=0):
            assert path.exists()
        child.stdin.close()
        assert child.wait(10) == 0


def test_no_other_user_can_open_the_lock_file(folder, path):
    """flock(2) needs no more than a descriptor, even of a file that is opened for reading."""
    for mask in (0, 0o022, 0o077):
        before = os.umask(mask)
        try:
            with host_lock.held(HOST):
                assert path.stat().st_mode & 0o777 == 0o600
                assert folder.stat().st_mode & 0o022 == 0
        finally:
            os.umask(before)
        path.unlink()


def test_another_user_cannot_block_a_change(folder, path):
    """The attack: open the lock file in any way, or create it first, and lock it."""
    with shared_folder(0o755) as shared:

        def lock_all():
            for target in (*shared.rglob("*.lock"), shared / "vmm-msi" / path.name):
                for flags in (os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_CREAT):
                    with contextlib.suppress(OSError):
                        fcntl.flock(os.open(target, flags), fcntl.LOCK_EX)

        with (
            pytest.MonkeyPatch.context() as patch,
            attacker(lock_all) if os.geteuid() == 0 else contextlib.nullcontext(),
        ):
            patch.setattr(host_lock, "FOLDER", shared / "vmm-msi")
            patch.setenv("XDG_RUNTIME_DIR", str(shared))
            for _ in range(200):
                with host_lock.held(HOST, timeout_s=0):
                    pass


def make_symlink(path):
    target = path.with_name("target")
    target.write_text("another file")
    path.symlink_to(target)


def make_hard_link(path):
    path.with_name("other").touch(0o600)
    path.hardlink_to(path.with_name("other"))


def make_socket(path):
    # The path of a socket has a limit of its own, below that of the folders of pytest.
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)


UNUSABLE = {
    "symlink": (make_symlink, "Too many levels of symbolic links"),
    "dangling symlink": (
        lambda path: path.symlink_to("nowhere"),
        "Too many levels of symbolic links",
    ),
    "FIFO": (os.mkfifo, "not a regular file"),
    "folder": (Path.mkdir, "Is a directory"),
    "socket": (make_socket, "No such device or address"),
    "open to others": (lambda path: path.touch(0o644), "other users may open it"),
    "open to a group": (lambda path: path.touch(0o640), "other users may open it"),
    "hard link": (make_hard_link, "has several names"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_an_unusable_lock_file(path, kind):
    make, words = UNUSABLE[kind]
    make(path)
    before = sorted(path.parent.iterdir())
    opened = len([*Path("/proc/self/fd").iterdir()])
    with pytest.raises(HypervisorError) as caught, host_lock.held(HOST):
        pytest.fail("it was used as a lock")
    assert str(caught.value) == (
        f"locking the guests of {HOST}: {path}: {words}; it must be a regular file of the caller "
        "or of root; remove it"
    )
    assert sorted(path.parent.iterdir()) == before
    assert len([*Path("/proc/self/fd").iterdir()]) == opened


def test_a_lock_file_of_another_user(path, monkeypatch):
    path.touch(0o600)
    monkeypatch.setattr(ownership, "weakness", lambda _path: None)
    user = give_away(path, monkeypatch)
    with pytest.raises(HypervisorError, match=rf"{path}: belongs to user {user}; it must be"):
        host_lock.held(HOST).__enter__()


@pytest.mark.parametrize("kind", ["sticky", "writable", "another user's", "link", "file"])
def test_a_folder_that_others_may_change(folder, path, kind, monkeypatch):
    """Who may remove the file lets two processes hold the lock at once."""
    folder.rmdir()
    if kind == "link":
        (folder.parent / "target").mkdir(mode=0o777)
        (folder.parent / "target").chmod(0o777)
        folder.symlink_to("target")
    elif kind == "file":
        folder.touch()
    else:
        folder.mkdir()
        folder.chmod({"sticky": 0o1777, "writable": 0o777}.get(kind, 0o700))
    if kind == "another user's":
        give_away(folder, monkeypatch)
    with pytest.raises(HypervisorError) as caught:
        host_lock.held(HOST).__enter__()
    where = folder.parent if os.geteuid() == 0 else ""  # else those above are of another user, too
    assert str(caught.value).startswith(f"locking the guests of {HOST}: {where}")
    assert kind == "file" or list(folder.iterdir()) == []


def test_the_folder_of_a_user():
    """Root's folder is not for other users."""
    code = (
        "import os\nfrom vmm_msi.provision import host_lock\n"
        "if os.geteuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        f"try:\n    with host_lock.held({HOST!r}, timeout_s=0): print('held')\n"
        "except host_lock.HypervisorError as error: print(error)\n"
    )

    def held_by_a_user(folder):
        environment = {"XDG_RUNTIME_DIR": str(folder)}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    with shared_folder(0o711) as parent:
        runtime = parent / "runtime"
        runtime.mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.chown(runtime, 65534, 65534)
        assert held_by_a_user(runtime) == "held"
        assert [path.name for path in (runtime / "vmm-msi").iterdir()]
        assert held_by_a_user(parent / "missing") == (
            f"locking the guests of {HOST}: there is no folder {parent}/missing for the lock; set "
            "XDG_RUNTIME_DIR to a folder of your own"
        )
        assert "there is no folder relative" in held_by_a_user("relative")


def test_an_outdated_plan_changes_nothing(connection):
    change = plan(connection, A)
    attach(connection, B)
    before = texts(connection)
    with pytest.raises(HypervisorError) as caught:
        apply_change(connection, change)
    assert str(caught.value) == (
        "changing guest0: another program changed it since this was planned; nothing was done, "
        "plan it again"
    )
    assert texts(connection) == before
    apply_change(connection, plan(connection, A))


def test_a_device_that_another_guest_got_since(connection):
    change = plan(connection, A, guest="guest1", strategy="direct")
    attach(connection, A)
    before = texts(connection)
    with pytest.raises(HypervisorError) as caught:
        apply_change(connection, change)
    assert str(caught.value) == (
        f"changing guest1: domain guest0 got {A} since this was planned; nothing was done, plan it "
        "again"
    )
    assert texts(connection) == before
