"""Text on real terminals of several widths: no line is too long, no word is broken, and colours."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
from doc_blocks import ROOT
from scenarios import Device, Sample

from vmm_msi import samples
from vmm_msi.cli.doctor import EXIT_ERRORS, EXIT_WARNINGS
from vmm_msi.types import PciAddress

CAPTURE = ROOT / "tests" / "captures" / "two-smmus.tar.zst"
BOARD = samples.path("eight-its-server.dtb")
EVENT = (
    "arm-smmu-v3 arm-smmu-v3.0.auto: event: F_TRANSLATION client: 0000:11:00.0 sid: 0x1100 "
    "ssid: 0x0 iova: 0x8000040 ipa: 0x0"
)
WORDS = {
    "compare two": ("compare", "--scenario", samples.path("two-its.toml")),
    "compare one": ("compare", "--host", CAPTURE, "--device", "0000:11:00.0"),
    "compare eight": ("compare", "--host", samples.path("eight-its.toml")),
    "trace": ("compare", "--scenario", samples.path("two-its.toml"), "--trace", "0000:02:00.0"),
    "doctor": ("doctor", CAPTURE),
    "doctor board": ("doctor", BOARD, "--device", "0000:01:00.0", "--libvirt", "9.0"),
    "doctor page": ("doctor", "--explain", "slot-order"),
    "explain": ("explain", EVENT, "--host", CAPTURE),
    "topology": ("topology", "show", CAPTURE),
    "topology board": ("topology", "show", BOARD, samples.path("eight-its.toml")),
    "plugins": ("plugins", "list", "--long"),
    "config": ("config", "check"),
}
_SGR = re.compile(r"\x1b\[[0-9;]*m")
_VARIABLES = ("COLUMNS", "NO_COLOR", "FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE")


def environment(**variables):
    kept = {name: value for name, value in os.environ.items() if name not in _VARIABLES}
    return kept | {"TERM": "xterm"} | variables


def command_line(words):
    code = "import sys; from vmm_msi.cli import main; sys.exit(main())"
    return [sys.executable, "-c", code, *map(str, words)]


def on_terminal(words, width, cwd, **variables):
    """Run a command line on a terminal; return what it shows, and the exit code."""
    reader, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    process = subprocess.Popen(
        command_line(words), stdout=terminal, stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL, cwd=cwd, env=environment(**variables),
    )  # fmt: skip
    os.close(terminal)
    shown = b""
    # EIO: the last process that had the terminal exited.
    with contextlib.suppress(OSError):
        while data := os.read(reader, 1 << 16):
            shown += data
    os.close(reader)
    return shown.decode().replace("\r\n", "\n"), process.wait()


def in_pipe(words, cwd, **variables):
    done = subprocess.run(
        command_line(words), cwd=cwd, env=environment(**variables), capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    return done.stdout, done.returncode


def words_of(text):
    """Return the words of a text, but for rules under heads and the marks between lines."""
    return {word for word in text.split() if word.strip("-|")}


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize("width", [80, 60, 200])
def test_text_fits_the_terminal(name, width, tmp_path):
    """A wider word, such as a path, is whole: it has a line that starts with it."""
    wide, code = in_pipe(WORDS[name], tmp_path, COLUMNS="10000")
    assert code in {0, EXIT_ERRORS, EXIT_WARNINGS}
    text = _SGR.sub("", on_terminal(WORDS[name], width, tmp_path)[0])
    # A strategy with options may end a line after a comma.
    pieces = {piece for word in words_of(wide) for piece in (word, *re.split("(?<=,)", word))}
    assert words_of(text) - pieces == set()
    for line in text.splitlines():
        assert len(line) <= width or len(line.split()[-1]) > width - 20, line


def test_a_pipe_and_a_file_have_80_columns(tmp_path):
    words = WORDS["compare two"]
    out, _code = in_pipe(words, tmp_path)
    assert out == _SGR.sub("", on_terminal(words, 80, tmp_path)[0])
    assert max(map(len, out.splitlines())) == 80
    on_terminal((*words, "-o", "out"), 200, tmp_path)
    assert (tmp_path / "out").read_text() == out
    narrow = in_pipe(words, tmp_path, COLUMNS="60")[0]
    assert max(map(len, narrow.splitlines())) <= 60


@pytest.mark.parametrize("value", ["", "0", "-5", "x", "\u0668\u0660", "9" * 5000])
def test_columns_that_make_no_sense_are_ignored(tmp_path, value):
    out, code = in_pipe(WORDS["plugins"], tmp_path, COLUMNS=value)
    assert code == 0
    assert len(max(out.splitlines(), key=len)) == 80 or value.startswith("9")


def many(tmp_path, number):
    """Write a scenario with many devices, behind two ITSes by turns."""
    devices = tuple(
        Device(PciAddress(0, 1 + n // 8, n % 8, 0), its=n % 2, giova=0xF000_0000 + n * 0x1000)
        for n in range(number)
    )
    path = tmp_path / "many.toml"
    path.write_text(Sample(devices).toml())
    return path


@pytest.mark.parametrize("width", [80, 60, 200])
def test_many_devices_are_folded(tmp_path, width):
    texts = {}
    for devices in (4, 9, 128):
        words = ("compare", "--scenario", many(tmp_path, devices))
        text, code = on_terminal(words, width, tmp_path, NO_COLOR="1")
        assert code == 0
        assert max(map(len, text.splitlines())) <= width
        texts[devices] = text.splitlines()
    # One line has them all: 9 devices take as many lines as 128 do.
    assert abs(len(texts[9]) - len(texts[128])) < 5
    flat = " ".join(" ".join(texts[128]).split())
    assert "the same for 63 other devices, with numbers of their own" in flat
    assert "the same for 127 other devices" in flat


@pytest.mark.parametrize(
    ("variables", "options", "colors"),
    [
        ({}, (), True),
        ({"NO_COLOR": "1"}, (), False),
        ({"NO_COLOR": ""}, (), True),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, (), False),
        ({"NO_COLOR": "1"}, ("--color", "always"), True),
        ({}, ("--color", "never"), False),
        ({"FORCE_COLOR": "1"}, ("--color=never",), False),
        ({"TERM": "dumb"}, (), False),
        ({"TERM": "dumb", "FORCE_COLOR": "1"}, (), True),
        ({"TERM": "dumb"}, ("--color", "always"), True),
        ({"CLICOLOR": "0"}, (), False),
        ({"CLICOLOR": "1"}, (), True),
        ({"CLICOLOR": "0", "CLICOLOR_FORCE": "1"}, (), True),
        ({"CLICOLOR_FORCE": "0"}, (), True),
    ],
)
def test_what_decides_on_colours(tmp_path, variables, options, colors):
    words = (*WORDS["compare two"], "--strategy", "direct", *options)
    text, _code = on_terminal(words, 80, tmp_path, **variables)
    assert ("\x1b[32mdelivered\x1b[0m" in text) is colors
    assert ("\x1b[33mrefused\x1b[0m" in text) is colors
    assert ("\x1b" in text) is colors


@pytest.mark.parametrize(
    ("variables", "options", "colors"),
    [
        ({}, (), False),
        ({"CLICOLOR": "1"}, (), False),
        ({"CLICOLOR_FORCE": "0"}, (), False),
        ({"CLICOLOR_FORCE": "1"}, (), True),
        ({"FORCE_COLOR": "1"}, (), True),
        ({}, ("--color", "always"), True),
    ],
)
def test_a_pipe_has_colours_only_if_they_are_forced(tmp_path, variables, options, colors):
    words = ("doctor", BOARD, "--device", "0000:01:00.0", "--libvirt", "9.0", *options)
    text, code = in_pipe(words, tmp_path, **variables)
    assert code == EXIT_ERRORS
    assert text.startswith("\x1b[31mERROR\x1b[0m " if colors else "ERROR ")
    document = in_pipe((*words, "--format", "json"), tmp_path, **variables)[0]
    assert "\x1b" not in document


@pytest.mark.parametrize("words", [("--help",), ("compare", "--help")])
def test_help_has_no_escapes_on_a_terminal(tmp_path, words):
    text, code = on_terminal(words, 80, tmp_path)
    assert (code, "\x1b" in text, "x1b" in text) == (0, False, False)


def test_a_colour_is_never_the_only_sign(tmp_path):
    for name in ("compare two", "doctor board", "trace", "topology board"):
        words = WORDS[name]
        plain, _code = in_pipe(words, tmp_path)
        colored, _code = in_pipe((*words, "--color", "always"), tmp_path)
        assert "\x1b[" in colored
        assert _SGR.sub("", colored) == plain


def test_text_from_outside_is_escaped_before_it_is_coloured(tmp_path):
    path = tmp_path / "g\x1b[31m.toml"
    path.write_text(samples.path("two-its.toml").read_text())
    out, _code = in_pipe(("doctor", path, "--color", "always"), tmp_path)
    assert "g\\x1b[31m.toml" in "".join(out.split())
    assert set(_SGR.findall(out)) <= {"\x1b[31m", "\x1b[33m", "\x1b[2m", "\x1b[0m"}
    assert "g\x1b" not in out
