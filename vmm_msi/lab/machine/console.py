"""Connect a terminal to the serial console of the emulated host."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import sys
import termios
import tty
from typing import TYPE_CHECKING

from vmm_msi.errors import LabError
from vmm_msi.terminal import print_error, print_lines, write_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_LEAVE = b"\x1d"  # Ctrl-]
_CHUNK = 1 << 16


def print_log(path: Path) -> None:
    """Print the console's log on standard output: unchanged to a file, as lines on a terminal.

    :raise LabError: when the log cannot be read.
    """
    try:
        with path.open("rb") as log:
            if sys.stdout.isatty():
                print_lines(line.decode(errors="replace").rstrip("\r\n") for line in log)
            else:
                while chunk := log.read(_CHUNK):
                    write_bytes(chunk)
    except FileNotFoundError as error:
        raise LabError(f"lab console: {path} is gone; the lab has just stopped") from error


def attach(path: Path) -> None:
    """Connect the terminal to the console until Ctrl-] or the host's end.

    :param path: the console's socket.
    :raise LabError: when another terminal is connected or the host has stopped.
    """
    with _exclusive(path), socket.socket(socket.AF_UNIX) as console:
        try:
            console.connect(os.fspath(path))
        except OSError as error:
            raise LabError(f"lab console: {path}: {error.strerror}; is it running?") from error
        print_error("lab console: connected; Ctrl-] leaves, Enter wakes the shell")
        with _raw(sys.stdin.fileno()):
            gone = _relay(console)
    print_error("")
    print_error(f"lab console: {'the host is gone' if gone else 'left'}")


def _relay(console: socket.socket) -> bool:
    """Copy bytes both ways, unchanged; return whether the host closed first."""
    keys, screen = sys.stdin.fileno(), sys.stdout.fileno()
    while True:
        ready, _, _ = select.select([keys, console], [], [])
        if console in ready:
            try:
                data = console.recv(_CHUNK)
            except OSError:
                data = b""
            if not data:
                return True
            _write_all(screen, data)
        if keys in ready:
            typed = os.read(keys, _CHUNK)
            before, left, _ = typed.partition(_LEAVE)
            with contextlib.suppress(OSError):
                console.sendall(before)
            if left or not typed:
                return False


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


@contextlib.contextmanager
def _raw(terminal: int) -> Iterator[None]:
    """Switch the terminal to raw mode, and restore it at the end."""
    before = termios.tcgetattr(terminal)
    try:
        # Keys typed ahead are for the console.
        tty.setraw(terminal, termios.TCSADRAIN)
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Lock the console: QEMU lets a second client wait silently."""
    try:
        lock = path.with_name(f"{path.name}.lock").open("ab")
    except OSError as error:
        raise LabError(f"lab console: {path}: {error.strerror}; run it as root") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LabError(
                "lab console: another terminal is connected; leave that one, or use --log"
            ) from None
        yield
