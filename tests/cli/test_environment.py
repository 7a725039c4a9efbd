"""The process's environment: streams, locale, folder, modules, signals. Never a traceback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from signals import DEFAULT_SIGNALS

from vmm_msi import samples

ROOT = Path(__file__).resolve().parents[2]
TWO_ITS = str(samples.path("two-its.toml"))
NODE = f"test://{samples.path('test-driver.xml')}"
VMM_MSI = [sys.executable, "-m", "vmm_msi"]
#: A command line for each command that prints something here, with its exit code.
COMMANDS = [
    (0, ["--help"]),
    (0, ["--version"]),
    (0, ["compare", "--scenario", TWO_ITS, "--strategy", "direct", "--format", "json"]),
    (9, ["doctor", TWO_ITS]),
    (0, ["plugins", "list"]),
    (0, ["completion", "bash"]),
    (1, ["explain", "nothing known"]),
    (0, ["status", "guest0", "-c", NODE]),
    (0, ["watch", "--print-unit"]),
]
WORDS = pytest.mark.parametrize(("code", "words"), COMMANDS, ids=lambda value: str(value)[:50])


def run(command, **options):
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    done = subprocess.run(
        command, check=False, stdin=subprocess.DEVNULL, timeout=60, errors="replace", **options
    )
    assert "Traceback" not in (done.stderr or "")
    return done


def one_line(done, code):
    assert done.returncode == code
    assert done.stderr.count("\n") == 1
    return done.stderr


# Standard streams.


@WORDS
def test_a_full_standard_output(code, words):
    del code
    with Path("/dev/full").open("w") as full:
        line = one_line(run([*VMM_MSI, *words], stdout=full), 1)
    assert "standard output: No space left on device" in line
    assert ("json" in words) == line.startswith("{")


@WORDS
def test_a_closed_standard_output(code, words):
    del code
    line = one_line(run(["sh", "-c", 'exec "$@" >&-', "sh", *VMM_MSI, *words]), 1)
    assert "standard output is closed; open it" in line


@WORDS
@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
def test_a_standard_error_that_takes_nothing(code, words, redirection):
    done = run(["sh", "-c", f'exec "$@" {redirection}', "sh", *VMM_MSI, *words])
    assert done.returncode == code
    assert done.stdout


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-", ">&- 2>&- <&-"])
def test_an_error_keeps_its_code_where_it_cannot_be_printed(redirection):
    words = ["compare", "--scenario", "missing"]
    done = run(["sh", "-c", f'exec "$@" {redirection}', "sh", *VMM_MSI, *words])
    assert (done.returncode, done.stdout) == (1 if ">&- " in redirection else 3, "")


def test_a_file_does_not_get_the_number_of_a_closed_stream(tmp_path):
    """What libvirt's C library prints on number 2 must not end in a file that is written."""
    code = (
        "import os, sys; sys.argv = ['vmm-msi', '--version']\n"
        "from vmm_msi.__main__ import main\n"
        "main(); print(open(sys.argv[0] if 0 else os.devnull).fileno())"
    )
    done = run(["sh", "-c", 'exec "$@" 2>&- <&-', "sh", sys.executable, "-c", code], cwd=tmp_path)
    assert int(done.stdout.split()[-1]) > 2


# Locales.

LOCALES = [
    {"LC_ALL": "C"},
    {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    {"LC_ALL": "xx_YY.no-such-locale"},
    {"PYTHONIOENCODING": "latin-1"},
    {},
]
IN_LOCALES = pytest.mark.parametrize("locale", LOCALES, ids=str)


def in_locale(locale, words):
    """Run the command with no locale but ``locale``."""
    kept = {k: v for k, v in os.environ.items() if k != "LANG" and not k.startswith("LC_")}
    return run([*VMM_MSI, *words], env={**kept, **locale})


@IN_LOCALES
@pytest.mark.parametrize("words", [["--help"], ["plugins", "list"]])
def test_text_that_the_locale_lacks(locale, words):
    assert in_locale(locale, words).returncode == 0


@IN_LOCALES
@pytest.mark.parametrize("name", [b"g\x9b0", "gü…".encode()], ids=ascii)
def test_a_name_in_another_encoding(tmp_path, locale, name):
    host = os.fsencode(tmp_path) + b"/" + name + b".toml"
    Path(os.fsdecode(host)).write_bytes(Path(TWO_ITS).read_bytes())
    assert in_locale(locale, ["doctor", host]).returncode == 9
    one_line(in_locale(locale, ["status", "-c", NODE, name]), 6)
    one_line(in_locale(locale, ["status", "g", "-c", b"test:///" + name]), 6)
    one_line(in_locale(locale, [name]), 2)
    document = json.loads(one_line(in_locale(locale, ["replay", name, "--format", "json"]), 3))
    assert document["code"] == "input"


# Long names.

LONG = "a" * 5000


@pytest.mark.parametrize("name", [LONG, f"/x/{LONG}.xml", "/".join(["a" * 99] * 99)])
@pytest.mark.parametrize(
    ("code", "words"),
    [
        (3, ["doctor"]),
        (3, ["doctor", "--root"]),
        (3, ["topology", "show"]),
        (2, ["topology", "capture", "--dry-run", "--root"]),
        (1, ["topology", "capture", "-o"]),
        (3, ["compare", "--scenario"]),
        (1, ["compare", "--scenario", TWO_ITS, "-o"]),
        (3, ["explain", "x", "--host"]),
        (3, ["replay"]),
        (3, ["config", "check", "--config"]),
        (3, ["plugins", "list", "--config"]),
        (2, ["plugins", "list", "--disable-plugin"]),
        (2, ["doctor", "--explain"]),
        (3, ["doctor", TWO_ITS, "--device"]),
        (1, ["hook", "status", "--hooks-dir"]),
        (3, ["lab", "conform", "--replay"]),
        (1, ["lab", "guest", "--record"]),
        (6, ["status", "-c", NODE]),
        (2, []),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_long_name(vmm_msi, words, code, name):
    status, out, err = vmm_msi(*words, name)
    assert (status if status != 3 else code) == code
    assert out == ""
    assert err.count("\n") == 1


# The current folder.


@pytest.mark.parametrize(
    ("code", "words"),
    [
        *COMMANDS[2:],
        (3, ["doctor", "x.toml"]),
        (1, ["compare", "--scenario", TWO_ITS, "-o", "out"]),
        (1, ["topology", "capture", "-o", "out"]),
        (2, ["watch", "--print-unit", "--config", "a", "--host", "b"]),
        (2, ["hook", "install", "--dry-run", "--hooks-dir", "x"]),
        (3, ["replay", "x"]),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_removed_folder(tmp_path, code, words):
    folder = tmp_path / "gone"
    folder.mkdir()
    done = run(
        ["sh", "-c", 'rmdir "$PWD" && exec "$@"', "sh", *VMM_MSI, *words],
        cwd=folder,
    )
    assert done.returncode == code
    assert "standard output" not in done.stderr


# libvirt-python.


@pytest.mark.parametrize(
    "words",
    [
        ["status", "g"],
        ["attach", "g", "0000:01:00.0", "--host", TWO_ITS],
        ["detach", "g", "all"],
        ["doctor", TWO_ITS, "--domain", "g"],
        ["doctor", TWO_ITS, "-c", "test:///default"],
        ["explain", "x", "--domain", "g"],
        ["compare", "--host", "test:///default"],
        ["compare", "--host", TWO_ITS, "--domain", "g"],
        ["topology", "show", "test:///default"],
        ["topology", "capture", "--dry-run", "-c", "test:///default"],
        ["watch", "--once", "--host", TWO_ITS],
        ["watch", "--host", TWO_ITS],
        ["lab", "up"],
    ],
    ids=" ".join,
)
def test_libvirt_python_is_missing(tmp_path, words):
    (tmp_path / "libvirt.py").write_text("raise ModuleNotFoundError(\"No module named 'libvirt'\")")
    done = run([*VMM_MSI, *words], env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert "install it with pip install 'vmm-msi[libvirt]'" in one_line(done, 2)


# Ctrl-C.


def test_little_is_imported_before_an_interrupt_is_handled():
    code = (
        "import sys; before = set(sys.modules); import vmm_msi.__main__\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = run([sys.executable, "-S", "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.stdout.split() == ["__future__", "vmm_msi", "vmm_msi.__main__"]


@pytest.mark.parametrize("module", ["argparse", "vmm_msi_slow", "msgspec"])
@pytest.mark.parametrize("form", ["text", "json"])
def test_an_interrupt_while_modules_are_imported(tmp_path, module, form):
    """A module that is imported early blocks until the signal arrives, the first time."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / f"{module}.py").write_text(
        f"import sys; sys.path.remove({str(tmp_path)!r}); open({str(pipe)!r}).read()"
    )
    words = ["config", "check", "--format", form]
    if module == "vmm_msi_slow":
        info = tmp_path / "slow-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: slow\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[vmm_msi]\nslow = vmm_msi_slow\n")
    command = [*DEFAULT_SIGNALS, *VMM_MSI, *words]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with (
        subprocess.Popen(command, env=environment, **streams) as process,
        pipe.open("w"),  # Returns when the module has opened it too.
    ):
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err.count("\n") == 1
    if form == "json":
        assert json.loads(err)["code"] == "interrupted"
    else:
        assert "interrupted" in err
