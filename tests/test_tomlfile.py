"""Strict TOML: unknown keys, types and syntax errors by line, hostile input in bounded time."""

from __future__ import annotations

import enum
import time
import tomllib
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm_msi.errors import ConfigError, InputError
from vmm_msi.tomlfile import MAX_SIZE, Number, TomlTable, decode, find_line, read


class Colour(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


class Item(TomlTable, frozen=True):
    id: Number
    base: Number = Number(0)
    colour: Colour = Colour.RED
    mode: Literal["fast", "slow"] = "fast"


class Host(TomlTable, frozen=True):
    item: tuple[Item, ...] = ()
    by_name: dict[str, Item] = {}  # noqa: RUF012 - msgspec copies it
    note: str | None = None
    flag: bool = False
    numbers: tuple[int, ...] = ()


class Document(TomlTable, frozen=True):
    host: Host


def error_of(text):
    with pytest.raises(ConfigError) as caught:
        decode(text, Document, "f.toml", ConfigError)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_decodes():
    text = '[host]\nnote = "x"\n[[host.item]]\nid = 1\nbase = "0x200000000"\ncolour = "blue"\n'
    assert decode(text, Document, "f.toml", ConfigError) == Document(
        host=Host(
            item=(Item(id=Number(1), base=Number(0x200000000), colour=Colour.BLUE),), note="x"
        )
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[host]\n[[host.item]]\nid = 1\nfoo = 2\n",
            "f.toml:4: unknown key 'foo' in [host.item]; valid keys: base, colour, id, mode",
        ),
        (
            "[host]\n[[host.item]]\nid=1\n[[host.item]]\nid=1\n\n[[host.item]]\nid=2\nbase='x'",
            "f.toml:9: host.item[2].base: expected an integer from 0 to 2^64-1 or a hex string",
        ),
        ("host = {item = [{id = 1},\n{id = 2},\n{id = true}]}", "f.toml:3: host.item[2].id: "),
        ("host = {item = [{id = 1, base = 2},\n{id = 1, base = -1}]}", "2: host.item[1].base"),
        ('host.by_name.a.id = 1\nhost.by_name.b.id = "x"', "f.toml:2: host.by_name.b.id: "),
        ('[host.by_name."a.b"]\nid = 1\n[host.by_name."c d"]\nid = []', "4: host.by_name.c d."),
        ("[host]\nnote = 3", "f.toml:2: host.note: expected string, got integer"),
        ("[host]\nflag = 1", "f.toml:2: host.flag: expected boolean, got integer"),
        ("host = 3", "f.toml:1: host: expected table, got integer"),
        ("\n\nx = 1", "f.toml:3: unknown key 'x' at top level; valid keys: host"),
        ("", "f.toml:1: required key 'host' is missing at top level"),
        ("[host]\n[[host.item]]\nbase = 1", "2: required key 'id' is missing in [host.item]"),
        ('[host]\n"a\\nb" = 1', "f.toml:2: unknown key"),
        (
            "[host]\n[[host.item]]\nid = 1\ncolour = 'pink'",
            "f.toml:4: host.item[0].colour: invalid enum value 'pink'; valid values: red, blue",
        ),
        ("[host]\n[[host.item]]\nid = 1\nmode = 'x'", "valid values: fast, slow"),
        ("[host]\nnumbers = [1,\n2, # c\n'x']", "f.toml:4: host.numbers[2]: expected integer"),
        ('[host]\nnote = """\nx = [\n"""\nflag = 3', "f.toml:5: host.flag"),
        ("[host]\nnote = '''\n'''''\nflag = 3", "f.toml:4: host.flag"),
        ("[host]\nbroken\n", "f.toml:2: not TOML: "),
        ("[host]\nnote = [1,\n2", "f.toml:3: not TOML: "),
        ("[host]\n[host]\n", "f.toml:2: not TOML: "),
        ("[host]\r\nflag = 1\r\n", "f.toml:2: host.flag"),
        ("[host]\n[[host.item]]\nid = 0x1_0000_0000_0000_0000", "f.toml:3: host.item[0].id"),
    ],
)  # fmt: skip
def test_errors_name_line_and_key(text, message):
    assert message in error_of(text)


@pytest.mark.parametrize("value", ["0x", "0x1g", "1", "0x1_0", "-0x1", "0x11111111111111111", ""])
def test_strings_that_are_no_numbers(value):
    assert "host.item[0].id: expected" in error_of(f"[host]\n[[host.item]]\nid = '{value}'")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = " + "[" * 100_000, "f.toml: arrays or inline tables are nested too deeply"),
        ("x = " + "{a=" * 100_000, "f.toml: arrays or inline tables are nested too deeply"),
        ("\nx = " + "1" * 5000, "f.toml:2: a number has too many digits"),
        ("\n" + ".".join("a" * 100_000) + " = 1", "f.toml:2: a key has more than 32 parts"),
        ('"""\n"""\n[' + " . ".join(["''"] * 99_999) + "]", "f.toml:3: a key has more than"),
        ('"""' * 300_000, "f.toml:1: not TOML"),
        ("a = " + '"\\"""' * 200_000, "f.toml:1: not TOML"),
        ("a" * MAX_SIZE, "not TOML"),
        ("a " * (MAX_SIZE // 2), "not TOML"),
        ("x = 1" + " " * MAX_SIZE, "larger than 1048576"),
        ("x = 1\n" + "# y.y\n" * 100_000, "unknown key 'x'"),
        ("[host]\nnumbers = [" + "1," * 400_000 + "'x']", "f.toml:2: host.numbers[400000]"),
        ("[host]\n" + "[[host.item]]\nid=1\n" * 50_000 + "x=1", "f.toml:100002: unknown key 'x'"),
    ],
)  # fmt: skip
def test_hostile_input_in_bounded_time(text, message):
    started = time.process_time()
    assert message in error_of(text)
    assert time.process_time() - started < 5


def test_find_line_falls_back_to_the_table():
    text = "\n[a]\n[[a.b]]\nx = 1\n[[a.b]]\nx = {y = 1}\n"
    assert find_line(text, ("a", "b", 1, "x", "y")) == 6
    assert find_line(text, ("a", "b", 1, "z")) == 5
    assert find_line(text, ("a", "b", 7)) == 2 + 1
    assert find_line(text, ("q",)) == 1


KEYS = st.sampled_from(["a", "b-1", '"c d"', "'e.f'", '"\\u0067"'])
NAMES = {'"c d"': "c d", "'e.f'": "e.f", '"\\u0067"': "g"}
SCALARS = st.sampled_from(["1", "1.5e3", "'#['", '"\\"]"', "1979-05-27 07:32:00", '"""\n]\n"""'])
TABLES = st.deferred(lambda: st.dictionaries(KEYS, VALUES, max_size=3))
VALUES = st.deferred(lambda: SCALARS | st.lists(VALUES, max_size=3) | TABLES)


class Printer:
    """Prints values as TOML and keeps the line of every path."""

    def __init__(self):
        self.text = ""
        self.lines = {}

    def set(self, path):
        self.lines[path] = 1 + self.text.count("\n")

    def value(self, value, path):
        self.set(path)
        if isinstance(value, str):
            self.text += value
        elif isinstance(value, list):
            self.text += "[ # ]\n"
            for index, element in enumerate(value):
                self.value(element, (*path, index))
                self.text += "\n ,\n"
            self.text += "]"
        else:
            self.text += "{"
            for number, (key, inner) in enumerate(value.items()):
                self.text += ", " if number else ""
                self.entry(key, inner, path)
            self.text += "}"

    def entry(self, key, value, path):
        self.text += f"{key} = "
        self.value(value, (*path, NAMES.get(key, key)))

    def table(self, table):
        for key, value in table.items():
            self.entry(key, value, ("t",))
            self.text += "\n"
        for number in range(2):
            self.text += "[[t.list]]\n"
            for key, value in table.items():
                self.entry(key, value, ("t", "list", number))
                self.text += "\n"


@settings(max_examples=60, deadline=None)
@given(TABLES)
def test_find_line_of_every_path(table):
    printer = Printer()
    printer.text = "[t]\n"
    printer.table(table)
    tomllib.loads(printer.text)
    for path, line in printer.lines.items():
        assert find_line(printer.text, path) == line, (path, printer.text)


def test_values_on_the_way_cost_no_more_for_their_depth():
    text = "x = " + "[" * 480 + "1," * 500_000 + "]" * 480 + "\ny = 1"
    started = time.process_time()
    assert find_line(text, ("y",)) == 2
    assert time.process_time() - started < 5


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("[]{}=.,\"'\n#ab1 \\"), max_size=60))
def test_any_text_ends_in_a_document_or_a_refusal(text):
    try:
        decode(text, Document, "f.toml", ConfigError)
    except ConfigError as error:
        message = str(error)
    else:
        message = "f.toml"
    assert message.startswith("f.toml")


def test_files(tmp_path):
    good = tmp_path / "good.toml"
    good.write_text("[host]\nflag = true\n")
    assert read(good, Document, ConfigError).host.flag
    with pytest.raises(ConfigError, match=r"none.toml: cannot be read: No such file"):
        read(tmp_path / "none.toml", Document, ConfigError)
    with pytest.raises(ConfigError, match=r"cannot be read: Is a directory"):
        read(tmp_path, Document, ConfigError)
    bad = tmp_path / "bad.toml"
    bad.write_bytes(b"[host]\n\xff\n")
    with pytest.raises(InputError, match=r"bad.toml: not UTF-8 at byte offset 0x7"):
        read(bad, Document, ConfigError)
    bad.write_bytes(b"#" * (MAX_SIZE + 1))
    with pytest.raises(ConfigError, match="larger than"):
        read(bad, Document, ConfigError)
