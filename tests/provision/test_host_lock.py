"""Changes take turns: who has the lock, who waits, and lock files that are something else."""

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
    with tempfile.TemporaryDirectory(prefix="vmm-msi-turns-") as name:
        Path(name).chmod(0o1777)
        monkeypatch.setattr(host_lock, "FOLDER", Path(name))
        yield Path(name)


@pytest.fixture
def path(folder):
    """The lock file, which is not there."""
    with host_lock.held(HOST):
        (found,) = folder.iterdir()
    found.unlink()
    return found


def in_another_process(folder, body):
    """Start Python with ``body``, which can use ``turn``; return it when it has said something."""
    code = (
        "import os, sys, time\nfrom pathlib import Path\nfrom vmm_msi.provision import host_lock\n"
        f"from vmm_msi.provision import host_lock\nhost_lock.FOLDER = Path({str(folder)!r})\n"
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
            pytest.fail("two have the turn")
        (path,) = folder.iterdir()
        assert str(caught.value) == (
            f"waiting for the turn to change guests on {HOST}: somebody else has {path} locked for "
            f"more than 0 s; fuser {path} tells who"
        )
        # Another host is another turn.
        with host_lock.held("other-host", timeout_s=0):
            pass
        child.stdin.close()
        assert child.wait(10) == 0
    with host_lock.held(HOST, timeout_s=0):
        pass


def test_a_process_that_is_killed_gives_its_turn_back_at_once(folder):
    with in_another_process(folder, HOLD) as child:
        child.kill()
        child.wait(10)
        with host_lock.held(HOST, timeout_s=0):
            pass


def test_a_turn_ends_though_a_child_of_its_process_lives_on(folder):
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


def test_a_lock_file_that_was_removed_while_somebody_waited(folder, path):
    """What is locked is the file that is there, so that the next one finds it locked, too."""
    with in_another_process(folder, HOLD) as child:
        path.unlink()
        with host_lock.held(HOST, timeout_s=0):
            assert path.exists()
        child.stdin.close()
        assert child.wait(10) == 0


def test_whoever_is_first_makes_it_for_all(path):
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
    target.write_text("of somebody else")
    path.symlink_to(target)


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


MADE = {
    "symlink": (make_symlink, "Too many levels of symbolic links"),
    "dangling symlink": (
        lambda path: path.symlink_to("nowhere"),
        "Too many levels of symbolic links",
    ),
    "FIFO": (os.mkfifo, "it is no plain file"),
    "folder": (Path.mkdir, "it is no plain file"),
    "socket": (make_socket, "No such device or address"),
}


@pytest.mark.parametrize("kind", MADE)
def test_a_lock_file_that_is_something_else(path, kind):
    make, words = MADE[kind]
    make(path)
    before = sorted(path.parent.iterdir())
    opened = len([*Path("/proc/self/fd").iterdir()])
    with pytest.raises(HypervisorError) as caught, host_lock.held(HOST):
        pytest.fail("it was taken for a lock")
    assert str(caught.value) == (
        f"waiting for the turn to change guests on {HOST}: {path}: {words}; valid is a plain file "
        f"that everybody may lock, in a folder {path.parent} that is there"
    )
    assert sorted(path.parent.iterdir()) == before
    assert len([*Path("/proc/self/fd").iterdir()]) == opened


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_lock_that_may_not_be_used(folder, path, what):
    if what == "file":
        path.touch(0)
        path.chmod(0)
    else:
        folder.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may read anything
    try:
        words = f"{path}: Permission denied; valid is a plain"
        with pytest.raises(HypervisorError, match=words), host_lock.held(HOST):
            pytest.fail("it was used")
    finally:
        os.seteuid(user)
        folder.chmod(0o1777)


def test_a_folder_that_is_not_there(monkeypatch, folder):
    monkeypatch.setattr(host_lock, "FOLDER", folder / "gone")
    with (
        pytest.raises(HypervisorError, match=r"in a folder .*/gone that is there$"),
        host_lock.held(HOST),
    ):
        pytest.fail("there is none")


def test_a_plan_that_is_out_of_date_does_nothing(connection):
    change = plan(connection, A)
    attach(connection, B)
    before = texts(connection)
    with pytest.raises(HypervisorError) as caught:
        apply_change(connection, change)
    assert str(caught.value) == (
        "changing guest0: somebody else changed it since this was planned; nothing was done, plan "
        "it again"
    )
    assert texts(connection) == before
    apply_change(connection, plan(connection, A))


def test_a_device_that_another_guest_got_since_is_not_given_twice(connection):
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
