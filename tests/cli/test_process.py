"""The command in a process of its own: exit codes, imports, signals, pipes, completion."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from signals import DEFAULT_SIGNALS

from vmm_msi import samples
from vmm_msi.cli import COMMANDS

TWO_ITS = str(samples.path("two-its.toml"))
BOARD = str(samples.path("eight-its-server.dtb"))
NODE = f"test://{samples.path('test-driver.xml')}"
ATTACH = ["attach", "guest0", "0000:01:00.0", "--host", BOARD, "--connect", NODE, "--dry-run"]
COMMANDS_WITHOUT_PAGES = (
    ["--help"],
    ATTACH,
    ["compare", "--scenario", TWO_ITS, "--strategy", "direct"],
    ["topology", "show", BOARD],
)


def run(*words, code=0, **environment):
    done = subprocess.run(
        [sys.executable, "-m", "vmm_msi", *words],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def loaded(code, *modules):
    """Run ``code`` in a new interpreter; return the loaded ones of ``modules``."""
    tail = f"\nimport sys\nprint([m for m in {modules!r} if m in sys.modules], file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code + tail], capture_output=True, text=True, check=True
    )
    return json.loads(done.stderr.replace("'", '"'))


# Help.


def help_of(words):
    """Return the help of ``words`` and the subcommands that it lists."""
    from vmm_msi.cli import build_parser

    parser = build_parser(tuple(COMMANDS))
    for word in words:
        parser = subcommands(parser)[word]
    return parser


def subcommands(parser):
    for action in parser._actions:
        if isinstance(action.choices, dict):
            return action.choices
    return {}


def every_command():
    todo = [()]
    while todo:
        words = todo.pop(0)
        yield words
        todo += [(*words, word) for word in subcommands(help_of(words))]


@pytest.mark.parametrize("words", list(every_command()), ids=" ".join)
def test_help(vmm_msi, words):
    code, out, err = vmm_msi(*words, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(" ".join(["usage: vmm-msi", *words]))
    for name in subcommands(help_of(words)):
        assert name in out


def test_every_command_is_listed(vmm_msi):
    assert {words[0] for words in every_command() if words} == set(COMMANDS)
    assert vmm_msi()[0] == 0
    assert vmm_msi()[1] == vmm_msi("--help")[1]


def test_version():
    from vmm_msi import __version__

    assert run("--version").stdout == f"vmm-msi {__version__}\n"


@pytest.mark.parametrize(
    "words", [["nope"], ["compare"], ["compare", "--scen", "x"], ["plugins"], ["attach", "guest"]]
)
def test_an_invalid_command_line(words):
    done = run(*words, code=2)
    assert done.stdout == ""
    assert done.stderr.startswith("vmm-msi")
    assert done.stderr.count("\n") == 1


# Imports.


def test_the_package_imports_neither_libvirt_nor_lxml():
    heavy = ("libvirt", "lxml", "pluggy", "msgspec")
    assert loaded("import vmm_msi", *heavy) == []
    assert loaded("import vmm_msi, lxml", *heavy) == ["lxml"]


def test_help_imports_no_command():
    heavy = ("libvirt", "lxml", "pluggy", "msgspec", "shtab", "vmm_msi.config")
    for words in ([], ["--help"], ["--version"]):
        code = (
            "from vmm_msi.cli import main\n"
            f"try: main({words!r})\nexcept SystemExit as stop: assert stop.code == 0"
        )
        assert loaded(code, *heavy) == []


def test_doctor_of_a_host_imports_nothing_about_guests():
    code = f"from vmm_msi.cli import main\nassert main(['doctor', {TWO_ITS!r}]) == 9"
    heavy = ("libvirt", "lxml", "pluggy", "vmm_msi.provision", "vmm_msi.domxml")
    assert loaded(code, *heavy) == []


def test_compare_does_not_import_libvirt():
    words = ["compare", "--scenario", TWO_ITS, "--strategy", "direct"]
    code = f"from vmm_msi.cli import main\nassert main({words!r}) == 0"
    assert loaded(code, "libvirt", "lxml") == []


# What a page for browsers takes: the templates, the drawings.
REPORTS = ("jinja2", "markupsafe", "vmm_msi.pages.html_writer", "vmm_msi.pages.drawing")


@pytest.mark.parametrize("words", COMMANDS_WITHOUT_PAGES, ids=lambda words: words[0])
def test_what_only_reports_need_is_imported_for_them_alone(words):
    code = (
        "from vmm_msi.cli import main\n"
        f"try: assert main({words!r}) == 0\nexcept SystemExit as stop: assert stop.code == 0"
    )
    assert loaded(code, *REPORTS) == []
    page = ["compare", "--scenario", TWO_ITS, "--strategy", "direct", "--format", "html"]
    code = f"from vmm_msi.cli import main\nassert main({page!r}) == 0"
    assert loaded(code, *REPORTS) == list(REPORTS)


@pytest.mark.parametrize("words", [["--help"], ATTACH, ["topology", "show", BOARD]])
def test_tables_on_a_terminal_need_no_page(words):
    code = (
        "from vmm_msi.cli import main\n"
        f"try: assert main({words!r}) == 0\nexcept SystemExit as stop: assert stop.code == 0"
    )
    assert loaded(code, "vmm_msi.pages") == []


# Exit codes: one for each class of error.


def plugin_distribution(folder, name, entry_point):
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[vmm_msi]\n{entry_point}\n")


def one_line(done, command):
    assert done.stdout == ""
    assert done.stderr.startswith(f"vmm-msi {command}: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (1, ["compare", "--scenario", TWO_ITS, "-o", "no/such/folder"]),
        (2, ["compare", "--scenario", TWO_ITS, "--strategy", "nope"]),
        (3, ["compare", "--scenario", "no-such-file"]),
        (5, ["attach", "guest0", "0000:01:00.0", "--host", BOARD, "-c", "NODE",
             "--strategy", "host-cookie"]),
        (6, ["status", "guest0", "-c", "test:///no/such/file"]),
        (7, ["lab", "root", "--cache", "/proc/nope"]),
    ],
)  # fmt: skip
def test_exit_code(code, words):
    uri = f"test://{samples.path('test-driver.xml')}"
    one_line(run(*[uri if word == "NODE" else word for word in words], code=code), words[0])


def test_exit_code_of_a_plugin_error(tmp_path):
    plugin_distribution(tmp_path, "outside", "outside = no_such_module")
    path = str(tmp_path)
    words = ["compare", "--scenario", TWO_ITS, "--strategy", "outside"]
    line = one_line(run(*words, code=4, PYTHONPATH=path), "compare")
    assert "plugin 'outside' (outside 1.0): cannot be imported: ModuleNotFoundError" in line
    done = run("plugins", "list", "--format", "json", PYTHONPATH=path)
    assert "'outside' (outside 1.0): cannot be imported" in done.stderr
    plugins = {plugin["name"]: plugin for plugin in json.loads(done.stdout)["plugins"]}
    assert (plugins["outside"]["state"], plugins["outside"]["origin"]) == ("broken", "outside 1.0")
    assert "no_such_module" in plugins["outside"]["problem"]
    assert {plugin["state"] for name, plugin in plugins.items() if name != "outside"} == {"loaded"}
    disabled = run("plugins", "list", "--disable-plugin", "outside", PYTHONPATH=path)
    assert disabled.stderr == ""


def test_two_plugins_of_one_name_stop_only_who_names_them(tmp_path):
    plugin_distribution(tmp_path, "outside", "direct = outside_direct:Direct")
    (tmp_path / "outside_direct.py").write_text("from vmm_msi_plugins.direct import Direct\n")
    path = str(tmp_path)
    words = ["compare", "--scenario", TWO_ITS]
    line = one_line(run(*words, "--strategy", "direct", code=4, PYTHONPATH=path), "compare")
    assert "the name is given 2 times: by outside 1.0 and by vmm-msi 0." in line
    for others in (["plugins", "list"], words, [*words, "--strategy", "identity"]):
        done = run(*others, PYTHONPATH=path)
        assert "direct:" not in done.stdout
        assert done.stderr.count("\n") == 1
        assert "the name is given 2 times" in done.stderr
    assert "broken" in run("plugins", "list", PYTHONPATH=path).stdout


BREAKS = """
from vmm_msi_plugins.identity import Identity

class Breaks(Identity):
    name = "breaks"
    def vmm_msi_attach_device(self, session, device):
        raise KeyError(device)
"""


def test_a_strategy_that_breaks_stops_only_who_names_it(tmp_path):
    plugin_distribution(tmp_path, "outside", "breaks = outside_breaks:Breaks")
    (tmp_path / "outside_breaks.py").write_text(BREAKS)
    words = ["compare", "--scenario", TWO_ITS]
    path = str(tmp_path)
    message = "strategy breaks: attach-device of 0000:01:00.0 failed with KeyError"
    line = one_line(run(*words, "--strategy", "breaks", code=4, PYTHONPATH=path), "compare")
    assert message in line
    done = run(*words, PYTHONPATH=path)
    assert message in done.stderr
    assert "it is skipped" in done.stderr
    assert "\nidentity " in done.stdout
    assert "\nbreaks " not in done.stdout


def test_a_broken_plugin_in_the_configuration_is_listed(tmp_path):
    plugin_distribution(tmp_path, "outside", "outside = no_such_module")
    (tmp_path / "vmm-msi.toml").write_text("strategy = 'outside'\n[strategies.outside]\nx = 1\n")
    config = ["--config", str(tmp_path / "vmm-msi.toml")]
    done = run("plugins", "list", *config, PYTHONPATH=str(tmp_path))
    assert "broken  outside 1.0" in done.stdout
    run("config", "check", *config, code=4, PYTHONPATH=str(tmp_path))


def test_interrupted(tmp_path):
    """The scenario is a pipe, so that the command waits for it when the signal arrives."""
    fifo = tmp_path / "scenario.toml"
    os.mkfifo(fifo)
    words = ["compare", "--scenario", str(fifo), "-o", "out"]
    command = [*DEFAULT_SIGNALS, sys.executable, "-m", "vmm_msi", *words]
    pipe = subprocess.PIPE
    with (
        subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=tmp_path) as process,
        fifo.open("w"),  # returns when the command has opened it too
    ):
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err == "vmm-msi compare: interrupted\n"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == []


def test_a_closed_pipe_is_not_an_error():
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "vmm_msi", "compare", "--scenario", TWO_ITS],
            stdout=write,
            stderr=subprocess.PIPE,
            check=False,
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


# Completion.


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_is_a_script(shell, tmp_path):
    script = tmp_path / shell
    script.write_text(run("completion", shell).stdout, encoding="utf-8")
    # bash can also parse the script for zsh; zsh itself is used if it is installed.
    reader = shutil.which(shell) or shutil.which("bash")
    assert reader is not None
    done = subprocess.run([reader, "-n", str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    text = script.read_text(encoding="utf-8")
    for word in (*COMMANDS, "--scenario", "--print-diff", "--disable-plugin"):
        assert word in text


def test_bash_completes(tmp_path):
    script = tmp_path / "completion"
    script.write_text(run("completion", "bash").stdout, encoding="utf-8")

    def complete(*words):
        line = f"""
            source '{script}'
            COMP_WORDS=({" ".join(words)} '') COMP_CWORD={len(words)}
            function=$(complete -p vmm-msi | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
            $function
            printf '%s\\n' "${{COMPREPLY[@]}}"
        """
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert set(COMMANDS) <= set(complete("vmm-msi"))
    assert "list" in complete("vmm-msi", "plugins")


def test_other_shells_have_no_completion():
    assert "'fish'" in run("completion", "fish", code=2).stderr
