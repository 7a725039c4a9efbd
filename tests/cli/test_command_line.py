"""The command line itself: one vocabulary of options, hints for near misses, errors as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vmm_msi import samples
from vmm_msi.cli import COMMANDS, EXIT_INTERRUPTED, build_parser, main
from vmm_msi.cli.parser import INSTEAD, INSTEAD_OF_COMMAND, Parser, _commands, _options
from vmm_msi.errors import VmmMsiError

A = "0000:01:00.0"
BOARD = samples.path("eight-its-server.dtb")
TWO_ITS = samples.path("two-its.toml")
NODE = f"test://{samples.path('test-driver.xml')}"
ROOT = Path(__file__).resolve().parents[2]


def parsers(parser: Parser, words: tuple[str, ...] = ()):
    """Yield each command without subcommands with its parser."""
    below = _commands(parser)
    if not below:
        yield words, parser
    for name, command in below.items():
        yield from parsers(command, (*words, name))


LEAVES = dict(parsers(build_parser(tuple(COMMANDS))))


# One vocabulary.

#: Options that mean the same in every command, with all their names.
VOCABULARY = (
    ("--host",),
    ("--domain", "--guest"),
    ("--device",),
    ("-c", "--connect"),
    ("--strategy",),
    ("-o", "--output"),
    ("--force",),
    ("--dry-run",),
    ("--format",),
    ("--color",),
    ("--config",),
    ("--disable-plugin",),
    ("--granule",),
)


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_an_option_has_the_same_names_everywhere(words):
    for action in LEAVES[words]._actions:
        for names in VOCABULARY:
            if set(action.option_strings) & set(names):
                assert tuple(action.option_strings) == names
                choices = action.choices and list(action.choices)
                assert names != ("--format",) or choices[:2] == ["text", "json"]


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_a_positional_has_the_name_of_its_option(words):
    names = {action.metavar for action in LEAVES[words]._actions if not action.option_strings}
    others = {
        None,
        "TEXT",
        "FILE",
        "GUEST",
        "NAME",
        "PLUGIN",
        "OPERATION",
        "SUB-OPERATION",
        "EXTRA",
    }
    assert names <= {"HOST", "DOMAIN", "DEVICE"} | others


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_a_file_for_the_result_is_overwritten_only_with_force(words):
    options = _options(LEAVES[words])
    assert ("--output" in options) <= ("--force" in options)


@pytest.mark.parametrize("command", ["doctor", "topology show"])
def test_a_host_with_and_without_its_option(vmm_msi, command):
    first = vmm_msi(*command.split(), BOARD, "--format", "json")
    assert first[1]
    assert vmm_msi(*command.split(), "--host", BOARD, "--format", "json") == first


@pytest.mark.parametrize("form", ["text", "json"])
def test_this_machine_is_refused_alike_if_it_is_not_an_arm_host(vmm_msi, form):
    code, out, err = vmm_msi("topology", "show", "--format", form)
    other, _out, message = vmm_msi("doctor", "--format", form)
    assert (code == 2) == (other == 2)
    if code == 2:
        assert out == ""
        assert err.replace("topology", "doctor", 1) == message


def test_the_vocabulary_is_documented():
    text = (ROOT / "docs" / "cli.md").read_text()
    section = text.partition("## Options that mean the same")[2].partition("\n## ")[0]
    for names in VOCABULARY:
        assert names[0] == "--granule" or all(f"{name}" in section for name in names)


# Hints.


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["atach"], "unknown command 'atach'; did you mean attach? valid: compare, attach, "),
        (["ATTACH"], "did you mean attach?"),
        (["toplogy"], "did you mean topology?"),
        (["atach", "guest0", "--format", "json"], "unknown command 'atach'; did you mean attach?"),
        (["topology", "shw", "--format=json"], "unknown subcommand 'shw'; did you mean show?"),
        (["help"], "use vmm-msi --help; "),
        (["list"], "use vmm-msi status"),
        (["topology", "shwo"], "unknown subcommand 'shwo'; did you mean show? valid: show"),
        (["lab", "buidl"], "did you mean build?"),
        (["hook", "instal"], "did you mean install?"),
        (["attach", "g", A, "--live"], "unknown option '--live'; use --scope live"),
        (["attach", "--live", "g", A], "use --scope live"),
        (["attach", "g", "--live"], "use --scope live"),
        (["status", "g", "--live"], "use --scope live"),
        (["detach", "g", A, "--persistent"], "use --scope both"),
        (["attach", "g", A, "--current"], "use --scope live for a running guest, --scope config"),
        (["attach", "g", A, "--config"], "virsh's --config is --scope config, the default"),
        (["attach", "--config", "g", A], "virsh's --config is --scope config, the default"),
        (["attach", "--config", "g", A, A], "virsh's --config is --scope config, the default"),
        (["doctor", "--json"], "use --format json"),
        (["compare", "--scenari", TWO_ITS], "did you mean --scenario?"),
        (["compare", "--domian=x"], "did you mean --domain?"),
        (["watch", "--log-format", "json"], "use --format"),
        (["render", "--device", A, "--print-xml"], "render prints the XML"),
        (["doctor", "--format", "jason"], "argument --format: invalid value 'jason'; did you mean"),
        (["attach", "g", A, "--scope", "life"], "did you mean live? valid: config, live, both"),
        (["doctor", "--nothing-like-it"], "; see vmm-msi doctor --help"),
        (["explain", "-x"], "unknown option '-x'; see vmm-msi explain --help"),
        (["plugins", "list", "more"], "unknown argument 'more'; see vmm-msi plugins list --help"),
        (["--versoin"], "unknown option '--versoin'; did you mean --version?"),
    ],
)  # fmt: skip
def test_a_near_miss(vmm_msi, words, hint):
    code, out, err = vmm_msi(*words)
    assert out == ""
    assert err.count("\n") == 1
    assert hint in err
    assert code == (3 if words[-2:] == [A, A] else 2)


NAMED = "--scenario", TWO_ITS, "--strategy"


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["compare", *NAMED, "identiti"], "strategy 'identiti': no such plugin; did you mean id"),
        (["compare", *NAMED, "coerced:revison=v2"], "did you mean revision? valid: "),
        (["compare", *NAMED, "direct:profile=linux-7.1"], "did you mean linux-7.2? valid: "),
        (["plugins", "list", "--disable-plugin", "drect"], "did you mean direct? valid: "),
        (["doctor", "--explain", "no-itss"], "finding 'no-itss': unknown id; similar: no-its"),
        (["doctor", "--explain", "qemu-no-group"], "a text of qemu that vmm-msi explain recog"),
        (["status", "guset0", "-c", NODE], "no such guest; did you mean guest0? valid: guest0"),
        (["attach", "guest0", A, "-c", NODE, "--host", BOARD, "--vsmmu", "atss=on"],
         "vSMMU property 'atss': unknown; did you mean ats? valid: "),
        (["lab", "guest", "--devices", "nvm"], "device 'nvm'; did you mean nvme? valid: "),
        (["lab", "guest", "--then", "rebot"], "did you mean reboot? valid: "),
    ],
)  # fmt: skip
def test_a_name_that_is_nearly_right(vmm_msi, words, hint):
    code, out, err = vmm_msi(*words)
    assert (code, out) == (6 if words[0] == "status" else 2, "")
    assert err.count("\n") == 1
    assert hint in err


def test_a_key_of_the_configuration_that_is_nearly_right(vmm_msi, nowhere):
    (nowhere / "vmm-msi.toml").write_text("stratgy = 'direct'\n")
    code, _out, err = vmm_msi("config", "check")
    assert code == 3
    assert "unknown key 'stratgy' at top level; did you mean strategy? valid keys: " in err


def test_every_hint_names_what_exists():
    known = {option for parser in LEAVES.values() for option in _options(parser)}
    for option, answers in INSTEAD.items():
        for answer in answers:
            name = answer.partition(" ")[0]
            assert not name.startswith("--") or name in known
        assert any(option not in _options(parser) for parser in LEAVES.values())
    assert not set(INSTEAD_OF_COMMAND) & set(COMMANDS)


# Errors as JSON.


@pytest.mark.parametrize(
    ("words", "command", "code", "exit_code"),
    [
        (["doctor", "--format", "json", "--live"], "doctor", "command-line", 2),
        (["doctor", "--format=json", "missing.dtb"], "doctor", "topology", 3),
        (["compare", "--format", "json"], "compare", "command-line", 2),
        (["compare", "--scenario", "missing", "--format", "json"], "compare", "scenario", 3),
        (["plugins", "list", "--config", "missing", "--format", "json"], "plugins", "config", 3),
        (["status", "g", "-c", "test:///missing", "--format", "json"], "status", "libvirt", 6),
        (["atach", "--format", "json"], "", "command-line", 2),
        (["record", "g", "-o", "x/y", "--format", "json"], "record", "command-line", 2),
        (["compare", "--scenario", TWO_ITS, "-o", "x/y", "--format", "json"], "compare",
         "output", 1),
        (["explain", "\x1b[2J\n", "--format", "json", "--domain", "a\x1b.xml"], "explain",
         "domain-xml", 3),
    ],
)  # fmt: skip
def test_an_error_is_a_document(vmm_msi, words, command, code, exit_code):
    status, out, err = vmm_msi(*words)
    assert (status, out) == (exit_code, "")
    assert err.count("\n") == 1
    assert err[:-1].isprintable()
    document = json.loads(err)
    assert list(document) == ["schema", "command", "code", "exit_code", "message"]
    assert document["message"]
    assert (document["schema"], document["command"]) == (1, command)
    assert (document["code"], document["exit_code"]) == (code, exit_code)


def test_the_message_is_that_for_people(vmm_msi):
    words = ["compare", "--scenario", TWO_ITS, "--strategy", "nope"]
    _code, _out, line = vmm_msi(*words)
    _code, _out, document = vmm_msi(*words, "--format", "json")
    assert line == f"vmm-msi compare: {json.loads(document)['message']}\n"


# Codes.


def kinds(kind: type[VmmMsiError]):
    yield kind
    for below in kind.__subclasses__():
        yield from kinds(below)


def test_every_error_has_a_code_of_its_own():
    codes = [kind.code for kind in kinds(VmmMsiError)]
    assert len(set(codes)) == len(codes)
    assert all(code == code.lower() and code.isprintable() for code in codes)


def exit_code_rows():
    text = (ROOT / "docs" / "cli.md").read_text().partition("\n## Exit codes\n")[2]
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| ")][1:]
    return [[cell.strip().strip("`") for cell in row[1:5]] for row in rows]


def test_the_table_has_every_error():
    rows = {
        name: (int(code), name_of) for code, name, name_of, _meaning in exit_code_rows() if name
    }
    defined = {
        kind.__name__: (kind.exit_code, kind.code)
        for kind in kinds(VmmMsiError)
        if kind.__module__.startswith("vmm_msi")
    }
    assert rows == defined


def test_the_table_has_every_result():
    """Every constant of the commands that is an exit code is in the table."""
    import importlib
    import pkgutil

    import vmm_msi.cli

    table = {int(row[0]) for row in exit_code_rows()}
    for info in pkgutil.iter_modules(vmm_msi.cli.__path__):
        module = importlib.import_module(f"vmm_msi.cli.{info.name}")
        for name, value in vars(module).items():
            if name.startswith("EXIT_") or name in {"LOST", "MISMATCH"}:
                assert value in table
    assert {0, 2, EXIT_INTERRUPTED} <= table


def test_main_returns_the_code_of_a_command_line_error():
    assert main(["nope"]) == 2
