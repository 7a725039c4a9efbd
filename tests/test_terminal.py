"""Text for people: what a terminal would obey is shown as an escape, wherever it comes from."""

from __future__ import annotations

import ast
import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_msi import terminal
from vmm_msi.lab.machine.console import print_log
from vmm_msi.report.json_text import json_text
from vmm_msi.terminal import printable

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (ROOT / "vmm_msi", ROOT / "plugins" / "vmm_msi_plugins")

#: Characters that a terminal obeys or that reorder a line, and how they are shown.
OBEYED = {
    "\x1b": r"\x1b",
    "\x9b": r"\x9b",
    "\x07": r"\x07",
    "\r": r"\r",
    "\n": r"\n",
    "\t": r"\t",
    "\x00": r"\x00",
    "\x7f": r"\x7f",
    "\x85": r"\x85",
    "\u2028": r"\u2028",
    "\u202e": r"\u202e",
    "\u2066": r"\u2066",
    "\udc9b": r"\udc9b",
    "\U000e0001": r"\U000e0001",
}


@pytest.mark.parametrize(("character", "shown"), OBEYED.items(), ids=ascii)
def test_a_character_that_a_terminal_obeys(character, shown):
    assert printable(f"a{character}b") == f"a{shown}b"


def test_printable_text_is_unchanged():
    assert printable("Gerät 0000:01:00.0 … \\x1b") == "Gerät 0000:01:00.0 … \\x1b"


#: Any text that Python reads: lone surrogates stand for bytes of file names that are not UTF-8.
TEXTS = st.text(
    st.characters(exclude_categories=["Cs"])
    | st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF, exclude_categories=[])
)


@given(TEXTS)
def test_every_text_becomes_one_line(text):
    line = printable(text)
    assert line.isprintable()
    assert line.encode().decode() == line
    assert printable(line) == line


@given(TEXTS)
def test_json_is_printable_and_keeps_its_meaning(text):
    document = {"name": text, text: [text]}
    shown = json_text(document)
    assert shown.replace("\n", "").isprintable()
    assert json.loads(shown) == document


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self):
        return True


def test_a_status_line_is_replaced_and_removed(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    status = terminal.StatusLine(stream)
    status.show("guest\x1b[2J0\n")
    status.clear()
    assert stream.getvalue() == "\r\x1b[K" r"guest\x1b[2J0\n" "\r\x1b[K"


@pytest.mark.parametrize(
    ("stream", "kind"), [(None, "xterm"), (io.StringIO(), "xterm"), (Terminal(), "dumb")]
)
def test_a_status_line_is_for_terminals_that_can_replace_it(stream, kind, monkeypatch):
    monkeypatch.setenv("TERM", kind)
    status = terminal.StatusLine(stream)
    status.show("guest0")
    status.clear()
    assert not status.is_live
    assert stream is None or stream.getvalue() == ""


def test_an_error_goes_nowhere_when_standard_error_is_closed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)
    terminal.print_error("refused")
    assert capsys.readouterr().out == ""


DOCUMENT = "<name>\tg\u202e\x9b</name>\n"


def test_a_document_for_a_program_is_unchanged(capfdbinary):
    terminal.print_document(DOCUMENT)
    assert capfdbinary.readouterr().out == DOCUMENT.encode()


def on_a_terminal(code):
    """Run ``code`` with a terminal as standard output; return what the terminal gets."""
    parent, child = pty.openpty()
    with os.fdopen(parent, "rb", buffering=0) as screen, os.fdopen(child, "wb") as stdout:
        subprocess.run([sys.executable, "-c", code], stdout=stdout, check=True)
        return screen.read(1 << 10)


def test_a_document_on_a_terminal_is_printable():
    code = f"from vmm_msi.terminal import print_document; print_document({DOCUMENT!a})"
    assert on_a_terminal(code) == b"<name>\tg\\u202e\\x9b</name>\r\n"


LOG = b"UEFI firmware\x1b[2J\r\n\xff\x07ready\r\n"


def test_a_console_log_on_a_terminal_is_printable(tmp_path, capfdbinary):
    log = tmp_path / "serial.log"
    log.write_bytes(LOG)
    code = (
        "from pathlib import Path; from vmm_msi.lab.machine.console import print_log; "
        f"print_log(Path({str(log)!r}))"
    )
    assert on_a_terminal(code).decode() == "UEFI firmware\\x1b[2J\r\n\ufffd\\x07ready\r\n"
    print_log(log)
    assert capfdbinary.readouterr().out == LOG


# Nothing is printed past the module.

PLACE = "vmm_msi/terminal.py"
#: Other uses of a terminal: by module, the expression and its reason.
EXEMPT = {
    "vmm_msi/lab/machine/console.py": {
        "sys.stdout.fileno": "relays a serial line to the terminal, as virsh console does"
    },
    "vmm_msi/lab/machine/keeper.py": {
        "sys.stderr.fileno": "gives the process that keeps the host a copy, for a Progress"
    },
}
_STREAMS = {"sys.stdout", "sys.stderr", "sys.__stdout__", "sys.__stderr__"}
#: Attributes of standard output and error that write no text.
_HARMLESS = {"isatty", "flush"}
_HANDLERS = {"StreamHandler", "basicConfig", "print_exc", "excepthook"}


def writes(source: str) -> set[str]:
    """Return the expressions by which a module prints without :mod:`vmm_msi.terminal`."""
    return {ast.unparse(node) for node in ast.walk(ast.parse(source)) if is_write(node)}


def is_write(node: ast.AST) -> bool:
    match node:
        case ast.Name(id="print"):
            return True
        case ast.Attribute(value=value, attr=attribute):
            of_a_stream = ast.unparse(value) in _STREAMS and attribute not in _HARMLESS
            return of_a_stream or attribute in _HANDLERS
        case ast.Call(args=[ast.Constant(value=1 | 2), *_]):
            return ast.unparse(node.func) in {"os.write", "open", "os.fdopen"}
    return False


MODULES = [
    str(path.relative_to(ROOT)) for package in PACKAGES for path in sorted(package.rglob("*.py"))
]


@pytest.mark.parametrize("module", [name for name in MODULES if name != PLACE])
def test_product_code_prints_through_one_place(module):
    assert writes((ROOT / module).read_text()) == set(EXEMPT.get(module, ()))


@pytest.mark.parametrize(
    "source",
    [
        "print('x')",
        "import builtins\nlist(map(print, lines))",
        "sys.stdout.write('x')",
        "sys.stderr.writelines(lines)",
        "sys.stdout.buffer.write(b'x')",
        "os.write(2, b'x')",
        "os.write(sys.stdout.fileno(), b'x')",
        "logging.StreamHandler(sys.stderr)",
        "traceback.print_exc()",
    ],
)
def test_a_write_past_that_place_is_seen(source):
    assert writes(source)
