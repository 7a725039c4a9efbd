"""2,000 command lines, generated from the parsers with invalid values for every argument.

None ends in a traceback, none hangs, each has a documented exit code, and no character that a
terminal obeys is printed. An error is one line, in JSON where JSON was asked for.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
from cli.test_command_line import LEAVES, exit_code_rows

from vmm_msi import samples
from vmm_msi.cli import main
from vmm_msi.qemuhook import imported_code

#: Command lines for each command.
EACH = 80
#: Longest time of one, in seconds: a hang, on a machine that other tests use too.
HANG_S = 60
DOCUMENTED = {int(row[0]) for row in exit_code_rows()}
#: Exit codes of results, which may come with any text on standard error.
RESULTS = {0, 1, 8, 9}

ESCAPES = "g\x1b]0;t\x07\x1b[2J\x9b31m\r\n\t\u202e\u2066\x7f0"
LONG = "a" * 5000
NOT_UTF8 = os.fsdecode(b"g\x9b0\xff")
GARBAGE = bytes(range(256)) * 20
HEAD = samples.path("eight-its-server.dtb").read_bytes()[:2000]

FILES = {
    "empty": b"",
    "garbage.dtb": GARBAGE,
    "truncated.dtb": HEAD,
    "good.dtb": samples.path("eight-its-server.dtb").read_bytes(),
    "good.toml": samples.path("two-its.toml").read_bytes(),
    "half.toml": samples.path("two-its.toml").read_bytes()[:700],
    "garbage.toml": GARBAGE,
    "escapes.toml": f"strategy = {json.dumps(ESCAPES)}\n".encode(),
    "good.xml": samples.path("three-devices.xml").read_bytes(),
    "half.xml": samples.path("three-devices.xml").read_bytes()[:900],
    "escapes.xml": "<domain type='kvm'><name>g\x9b\u202e</name><devices/></domain>".encode(),
    "network.xml": b"<network/>",
    "deep.xml": b"<domain>" * 5000,
    "host.tar.zst": b"\x28\xb5\x2f\xfd" + GARBAGE,
    "recording.json": b'{"schema": 1, "devices": [' + b"[" * 5000,
    "other.json": b"[1, 2",
    "log": ESCAPES.encode() * 50,
    "utf-16": "arm-smmu-v3 arm-smmu-v3.0.auto: event 0x10".encode("utf-16"),
}
PATHS = [*FILES, "folder", "missing", f"missing/{LONG}", LONG, ESCAPES, NOT_UTF8, "", ".", "/", "-"]
PATHS += ["..", "~", "/dev/null", "/dev/full", "/proc/self/mem", "/dev/zero", "folder/new", "new"]
NUMBERS = [
    "-1",
    "0",
    "1",
    "3",
    "1e9",
    "x",
    "",
    "9" * 30,
    "9" * 5000,
    "\u0663",
    "0x10",
    "nan",
    "-inf",
]
ADDRESSES = ["0000:01:00.0", "0001:01:00.0", "1:0.0", "0000:01:00.8", "ffff:ff:1f.7", "all", "",
             ESCAPES, NOT_UTF8, LONG, "0009:01:00.0", "01:00.0", "0000:0\u0661:00.0"]  # fmt: skip
NAMES = ["guest0", "guest1", "absent", "", "-", ESCAPES, NOT_UTF8, LONG, "good.xml", "./deep.xml",
         "5b6d4f0a-2a5e-4b0e-9d53-0f6d3a7f1e00", "identity", "no-its", "nvme", "--"]  # fmt: skip
STRATEGIES = ["identity", "nope", "direct:", "direct:x=1", "coerced:revision=v9", ":", "a:b=c,d",
              "multi-its:mode=vsmmu", "direct:profile=linux-1", ESCAPES, LONG, ""]  # fmt: skip
URIS = ["test:///default", "test:///missing", "test:///", "nothing://at-all", "", "qemu", ESCAPES,
        "qemu+unix:///system?socket=/missing", "test://a/b", LONG, NOT_UTF8, "://"]  # fmt: skip
PAIRS = ["ats=on", "ats=x", "x=y", "ats", "=", ",", "oas=45", "ats=on,ats=on", ESCAPES, "12.8",
         "12", "a.b", ":9", "unix:", "unix:/missing/x", "[::1]:x", "256.0.0.1:1"]  # fmt: skip
POOLS = {
    "HOST": [*PATHS, *URIS],
    "FILE": PATHS,
    "DIR": PATHS,
    "FOLDER": PATHS,
    "DOMAIN": NAMES,
    "DEVICE": ADDRESSES,
    "N": NUMBERS,
    "S": NUMBERS,
    "MIB": NUMBERS,
    "SECONDS": NUMBERS,
    "URI": URIS,
    "NAME[:key=value,…]": STRATEGIES,
    "KEY=VALUE[,…]": PAIRS,
    "RELEASE": PAIRS,
    "ADDRESS": [*ADDRESSES, *PAIRS],
}
OTHER = [*NAMES, ESCAPES, LONG, "prepare", "begin", "start"]
EVERY = [*PATHS, *NUMBERS, *ADDRESSES, *NAMES, *STRATEGIES, *PAIRS]

#: Words that keep a command from this machine: nothing is started, installed or stopped.
HARMLESS = {
    "attach": ["-c", "NODE"],
    "bind": ["-c", "NODE"],
    "detach": ["-c", "NODE"],
    "status": ["-c", "NODE"],
    "record": ["-c", "NODE"],
    "doctor": ["-c", "NODE"],
    "explain": ["-c", "NODE"],
    "compare": ["--backend", "sim", "-c", "NODE"],
    "watch": ["--once", "-c", "NODE"],
    "hook install": ["--dry-run", "--hooks-dir", "folder"],
    "hook uninstall": ["--dry-run", "--hooks-dir", "folder"],
    "topology capture": ["--dry-run"],
    "lab root": ["--cache", "empty/folder"],
    "lab build": ["--cache", "empty/folder"],
    "lab up": ["--cache", "empty/folder", "--smmus", "999"],
    "lab guest": ["--cache", "empty/folder", "--count", "0"],
    "lab compare-guests": ["--cache", "empty/folder", "--columns", "none"],
    "lab capture": ["--cache", "empty/folder", "--smmus", "999"],
    "lab conform": ["--cache", "empty/folder", "--count", "0"],
    "lab down": ["--unknown"],
    "lab console": ["--unknown"],
}
#: Values that would use this machine's own devices or another one's.
REAL = {"lab", "iommufd"}


def values_of(action, choose):
    if action.choices is not None:
        return [*(str(choice) for choice in action.choices if choice not in REAL), "nope", ESCAPES]
    return EVERY if choose.random() < 0.15 else POOLS.get(str(action.metavar), OTHER)


def command_line(words, parser, choose):
    """Return one command line: some options, most positionals, sometimes a slip."""
    line = []
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        likely = 0.9 if action.required or not action.option_strings else 0.25
        while choose.random() < likely:
            value = [] if action.nargs == 0 else [choose.choice(values_of(action, choose))]
            if action.option_strings:
                option = choose.choice(action.option_strings)
                if option.startswith("--") and value and choose.random() < 0.5:
                    line.append(f"{option}={value[0]}")
                else:
                    line += [option, *value]
            else:
                line += value
            likely = 0.2
    harmless = HARMLESS.get(" ".join(words), [])
    slip = choose.random()
    if slip < 0.05:
        line.insert(choose.randrange(len(line) + 1), choose.choice(["--live", "-x", "--", ESCAPES]))
    elif slip < 0.1 and line:
        del line[choose.randrange(len(line))]
    # Harmless words come first and last: of an option that is given twice, the last one counts.
    options = [word for word in line if word != "--"]
    return [*words, *options, *harmless]


IMPORTS_OF = functools.cache(imported_code.imports_of)
BELOW = functools.cache(imported_code._below)


@pytest.fixture
def place(nowhere, tmp_path, monkeypatch):
    """The current folder with the files, a libvirt node, and no way to this machine's hooks."""
    for name, content in FILES.items():
        (nowhere / name).write_bytes(content)
    (nowhere / "folder").mkdir()
    node = Path(shutil.copy(samples.path("test-driver.xml"), tmp_path / "node.xml"))
    monkeypatch.setattr("vmm_msi.qemuhook.run_records.RUN_RECORDS", tmp_path / "records")
    # One runs an interpreter, the other walks all code that it imports: both answers stay the same.
    monkeypatch.setattr(imported_code, "imports_of", IMPORTS_OF)
    monkeypatch.setattr(imported_code, "_below", lambda folders: BELOW(tuple(folders)))
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", f"test://{node}")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return node


class HangError(Exception):
    """A command line took too long."""


def on_alarm(_number, _frame):
    raise HangError


def run(words, capfd):
    """Run a command line; return exit code, output and error, and how long it took."""
    signal.signal(signal.SIGALRM, on_alarm)
    signal.alarm(HANG_S)
    start = time.monotonic()
    try:
        code = main(words)
    except SystemExit as stop:
        code = stop.code
    finally:
        signal.alarm(0)
    return code, *capfd.readouterr(), time.monotonic() - start


def check(words, code, out, err):
    """Check what a command line printed."""
    assert code in DOCUMENTED
    assert "Traceback" not in err
    assert all(line.isprintable() for line in err.split("\n"))
    if "--color=always" in words or ("--color", "always") in pairwise(words):
        out = re.sub(r"\x1b\[(?:0|2|31|32|33)m", "", out)
    xml = out.lstrip().startswith(("<", "---"))
    assert xml or all(line.isprintable() for line in out.split("\n"))
    as_json = "--format=json" in words or ("--format", "json") in pairwise(words)
    if code not in RESULTS:
        assert err.endswith("\n")
        if as_json:
            document = json.loads(err.splitlines()[-1])
            assert document["exit_code"] == code
        else:
            assert err.splitlines()[-1].startswith("vmm-msi")
        assert out == ""


def test_there_are_2000_of_them():
    assert len(LEAVES) * EACH >= 2000


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_bad_input(words, place, capfd, monkeypatch):
    choose = random.Random(f"{words}")  # noqa: S311 - repeatable, not secret
    codes = set()
    standard_input = functools.partial(choose.choice, [*FILES.values()])
    for number in range(EACH):
        data = standard_input()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        line = command_line(words, LEAVES[words], choose)
        line = [f"test://{place}" if word == "NODE" else word for word in line]
        code, out, err, _took = run(line, capfd)
        try:
            check(line, code, out, err)
        except (AssertionError, ValueError) as failure:
            pytest.fail(f"{number}: {line!r}: {code}, {out[:500]!r}, {err[-2000:]!r}: {failure}")
        codes.add(code)
    # The lines are not all refused for one reason.
    assert len(codes) > 1 or words[0] in {"lab", "completion", "hook"}
