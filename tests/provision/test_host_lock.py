"""The host lock: one holder at a time, released on exit, and lock files that are not usable."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from provision.helpers import A, B, attach, plan, texts

from vmm_msi.errors import HypervisorError
from vmm_msi.provision import apply_change, host_lock

HOST = "some-host"


@pytest.fixture(autouse=True)
def folder(monkeypatch):
    """A folder for lock files that every user may use, as /run/lock is."""
    with tempfile.TemporaryDirectory(prefix="vmm-msi-lock-") as name:
        Path(name).chmod(0o1777)
        monkeypatch.setattr(host_lock, "FOLDER", Path(name))
        yield Path(name)


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


def test_the_first_process_creates_it_for_every_user(path):
    before = os.umask(0o077)
    try:
        with host_lock.held(HOST):
            pass
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o444
    assert path.stat().st_size == 0


def make_symlink(path):
    target = path.with_name("target")
    target.write_text("another file")
    path.symlink_to(target)


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


UNUSABLE = {
    "symlink": (make_symlink, "Too many levels of symbolic links"),
    "dangling symlink": (
        lambda path: path.symlink_to("nowhere"),
        "Too many levels of symbolic links",
    ),
    "FIFO": (os.mkfifo, "not a regular file"),
    "folder": (Path.mkdir, "not a regular file"),
    "socket": (make_socket, "No such device or address"),
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
        f"locking the guests of {HOST}: {path}: {words}; it must be a regular file that every user "
        f"may lock, and the folder {path.parent} must exist"
    )
    assert sorted(path.parent.iterdir()) == before
    assert len([*Path("/proc/self/fd").iterdir()]) == opened


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_lock_without_permission(folder, path, what):
    if what == "file":
        path.touch(0)
        path.chmod(0)
    else:
        folder.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may read anything
    try:
        words = f"{path}: Permission denied; it must be a regular file"
        with pytest.raises(HypervisorError, match=words), host_lock.held(HOST):
            pytest.fail("it was used")
    finally:
        os.seteuid(user)
        folder.chmod(0o1777)


def test_a_missing_folder(monkeypatch, folder):
    monkeypatch.setattr(host_lock, "FOLDER", folder / "gone")
    with (
        pytest.raises(HypervisorError, match=r"the folder .*/gone must exist$"),
        host_lock.held(HOST),
    ):
        pytest.fail("the folder does not exist")


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
