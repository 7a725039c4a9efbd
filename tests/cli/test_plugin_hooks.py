"""Doctor rules, host readers and report formats of another distribution, on the command line."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from scenarios import A, pair

from plugins import outside_plugins
from vmm_msi import samples
from vmm_msi.cli import common
from vmm_msi.library import examination, hosts
from vmm_msi.plugins import contract

BOARD = samples.path("eight-its-server.dtb")
GUEST = samples.path("three-devices.xml")
NAMES = {"site": "Site", "site-host": "SiteHost", "names": "Names"}


@pytest.fixture(autouse=True)
def guest_on_standard_input(monkeypatch):
    """Have the XML of a guest on standard input, for each command."""

    class Guest(io.StringIO):
        @property
        def buffer(self):
            return io.BytesIO(GUEST.read_bytes())

    monkeypatch.setattr("sys.stdin", Guest())


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that installs the plugins from a module with more source."""

    def install(more=""):
        folder = tmp_path / "site-packages"
        information = folder / "outside-1.0.dist-info"
        information.mkdir(parents=True)
        module = f"outside_{tmp_path.name.replace('-', '_')}"
        (folder / f"{module}.py").write_text(Path(outside_plugins.__file__).read_text() + more)
        (information / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n"
        )
        points = "".join(f"{name} = {module}:{kind}\n" for name, kind in NAMES.items())
        (information / "entry_points.txt").write_text(f"[vmm_msi]\n{points}")
        monkeypatch.syspath_prepend(folder)

    return install


def broken(implementation):
    """Return source that replaces each hook."""
    return f"""

from vmm_msi.plugins import hookimpl


class Broken:
    def vmm_msi_examine(self, examined):
        {implementation}

    def vmm_msi_read_host(self, name, content):
        {implementation}

    def vmm_msi_format_comparison(self, document):
        {implementation}


for kind in (Site, SiteHost, Names):
    for hook in vars(Broken):
        if hook.startswith("vmm_msi_") and hook in vars(kind):
            setattr(kind, hook, hookimpl(vars(Broken)[hook]))
"""


# Doctor rules.


def test_a_finding_of_a_plugin(install, vmm_msi):
    before = vmm_msi("doctor", BOARD, "--format", "json")
    install()
    code, out, err = vmm_msi("doctor", BOARD, "--format", "json")
    assert (code, err) == (8, before[2])
    findings = json.loads(out)["findings"]
    (finding,) = [finding for finding in findings if finding["id"] == "site-two-its"]
    assert finding["evidence"] == [{"where": str(BOARD), "what": "8 ITSes"}]
    assert [f for f in findings if f != finding] == json.loads(before[1])["findings"]
    assert findings[0] == finding  # errors first
    code, out, _err = vmm_msi("doctor", BOARD)
    assert "site-two-its" in out
    assert "Use another host." in out
    code, out, _err = vmm_msi("doctor", BOARD, "--format", "html")
    assert (code, "site-two-its" in out) == (8, True)


def test_its_page(install, vmm_msi):
    assert vmm_msi("doctor", "--explain", "site-two-its")[0] == 2
    install()
    assert vmm_msi("doctor", "--explain", "site-two-its") == (0, outside_plugins.PAGE, "")
    code, _out, err = vmm_msi("doctor", "--explain", "site-nothing")
    assert (code, "unknown id" in err) == (2, True)


@pytest.mark.parametrize(
    "command",
    [
        ["compare", "--host", BOARD, "--device", "0000:01:00.0", "--strategy", "identity"],
        ["render", "--host", BOARD, "--device", "0000:01:00.0", "--take-over"],
        [
            "attach", "guest0", "0000:01:00.0", "--host", BOARD, "--dry-run",
            "-c", f"test://{samples.path('test-driver.xml')}",
        ],
    ],
    ids=lambda command: command[0],
)  # fmt: skip
def test_an_error_of_a_plugin_refuses_like_any_other(command, install, vmm_msi):
    assert vmm_msi(*command)[0] == 0
    install()
    code, out, err = vmm_msi(*command)
    assert (code, out) == (5, "")
    assert "site-two-its (host): We do not run hosts with several ITSes. Use another host." in err
    assert "vmm-msi doctor --explain site-two-its" in err
    assert vmm_msi(*command, "--disable-plugin", "site")[0] == 0
    code, _out, err = vmm_msi(*command, "--allow-faults")
    assert code == 0


@pytest.mark.parametrize(
    ("implementation", "problem"),
    [
        ("raise KeyError('broken')", f"examining {BOARD} failed with KeyError: 'broken'"),
        ("return 7", f"examining {BOARD} failed with TypeError: 'int' object is not iterable"),
        ("return ['x']", "it reported 'x'; valid: a Finding"),
        (
            "return [Finding('no-its', Severity.NOTE, 'host', (), 'a', 'b')]",
            "finding 'no-its'; valid: an id that starts with site-",
        ),
        (
            "return [Finding('site-x', 'note', 'host', (), 'a', 'b')]",
            "finding 'site-x' has a field of another type; valid: texts, a Severity",
        ),
    ],
)
def test_a_rule_that_fails(implementation, problem, install, vmm_msi, caplog):
    """The doctor answers without it; a change is refused, since what it checks is unknown."""
    before = vmm_msi("doctor", BOARD, "--format", "json")
    install(broken(implementation))
    caplog.clear()
    assert vmm_msi("doctor", BOARD, "--format", "json")[:2] == before[:2]
    (message,) = caplog.messages
    assert message.startswith("doctor rule site: ")
    assert problem in message
    assert message.endswith("; it is skipped")
    words = ["render", "--host", BOARD, "--device", "0000:01:00.0", "--take-over"]
    code, out, err = vmm_msi(*words)
    assert (code, out) == (4, "")
    assert err.startswith("vmm-msi render: doctor rule site: ")
    assert problem in err
    assert vmm_msi(*words, "--disable-plugin", "site")[0] == 0


def test_a_rule_sees_the_host_and_the_guest(install, vmm_msi):
    fields = (
        "str((len(examined.host.itses), len(examined.devices), examined.domain, "
        "'<domain' in (examined.domain_xml or ''), "
        "sorted(map(str, examined.strategies.values())), examined.read('/proc/cmdline')))"
    )
    finding = f"Finding('site-x', Severity.NOTE, 'host', (Evidence('x', {fields}),), 'a', 'b')"
    install(broken(f"return [{finding}]"))
    for words, expected in (
        (["--domain", GUEST], (3, "three-devices", True, [])),
        (["--device", "0000:01:00.0"], (1, None, False, ["identity"])),
    ):
        findings = json.loads(vmm_msi("doctor", BOARD, *words, "--format", "json")[1])["findings"]
        (evidence,) = [f["evidence"][0]["what"] for f in findings if f["id"] == "site-x"]
        assert evidence == str((8, *expected, None))


def test_the_library_runs_it(install):
    install()
    examined = examination.examine(str(BOARD))
    assert "site-two-its" in {finding.id for finding in examined.findings}


# Host readers.


@pytest.fixture
def inventory(nowhere):
    path = nowhere / "inventory"
    path.write_bytes(outside_plugins.MAGIC + b"200000000\n")
    return path


def test_a_file_of_another_form(install, vmm_msi, inventory):
    code, _out, err = vmm_msi("topology", "show", inventory)
    assert code == 3
    assert "starts with b'SITE'; a host is a TOML file" in err
    install()
    code, out, err = vmm_msi("topology", "show", inventory, "--format", "json")
    assert (code, err) == (0, "")
    assert [its["base"] for its in json.loads(out)["itses"]] == ["0x200000000"]
    assert vmm_msi("doctor", inventory)[0] in {0, 9}
    words = ["compare", "--host", inventory, "--device", A, "--strategy", "identity"]
    assert vmm_msi(*words)[0] == 0
    assert len(hosts.load_host(str(inventory)).topology.itses) == 1


def test_a_malformed_file_of_another_form(install, vmm_msi, inventory):
    install()
    inventory.write_bytes(outside_plugins.MAGIC + b"here\n")
    code, _out, err = vmm_msi("topology", "show", inventory)
    assert code == 3
    assert f"{inventory}: not the base of an ITS: invalid literal" in err


def test_a_form_of_vmm_msi_is_not_passed_to_a_reader(install, vmm_msi):
    before = vmm_msi("topology", "show", BOARD, "--format", "json")
    install(broken("raise KeyError('broken')"))
    assert vmm_msi("topology", "show", BOARD, "--format", "json") == before


@pytest.mark.parametrize(
    ("implementation", "problem"),
    [
        ("raise KeyError('broken')", " failed with KeyError: 'broken'"),
        ("return 7", ": it returned int; valid: a HostTopology, or None"),
    ],
)
def test_a_reader_that_fails(implementation, problem, install, vmm_msi, inventory):
    install(broken(implementation))
    code, out, err = vmm_msi("topology", "show", inventory)
    assert (code, out) == (4, "")
    assert err == f"vmm-msi topology: host reader site-host: reading {inventory}{problem}\n"


# Report formats.


@pytest.fixture
def scenario(nowhere):
    path = nowhere / "scenario.toml"
    path.write_text(pair("own").toml())
    return path


def test_a_format_of_a_plugin(install, vmm_msi, scenario, nowhere):
    words = ["compare", "--scenario", scenario, "--strategy", "direct", "--strategy", "identity"]
    code, _out, err = vmm_msi(*words, "--format", "names")
    assert code == 2
    install()
    assert vmm_msi(*words, "--format", "names") == (0, "direct\nidentity\n", "")
    assert vmm_msi(*words, "--format", "names", "-o", "out")[0] == 0
    assert (nowhere / "out").read_text() == "direct\nidentity\n"
    code, _out, err = vmm_msi(*words, "--format", "names", "--vary", "guest.order=batched")
    assert (code, "--format names shows one world; use --set in place of --vary" in err) == (
        2,
        True,
    )
    code, _out, err = vmm_msi(*words, "--format", "direct")
    assert code == 2
    assert "report-format 'direct': no such plugin; valid: names" in err


@pytest.mark.parametrize(
    ("implementation", "problem"),
    [
        ("raise KeyError('broken')", " failed with KeyError: 'broken'"),
        ("return 'text'", ": it returned str; valid: bytes"),
    ],
)
def test_a_format_that_fails(implementation, problem, install, vmm_msi, scenario, nowhere):
    install(broken(implementation))
    words = ["compare", "--scenario", scenario, "--strategy", "identity", "-o", "out"]
    code, out, err = vmm_msi(*words, "--format", "names")
    assert (code, out) == (4, "")
    assert err == f"vmm-msi compare: report format names: writing the comparison{problem}\n"
    assert not (nowhere / "out").exists()
    assert vmm_msi(*words)[0] == 0


def test_the_formats_of_vmm_msi_are_reserved():
    assert set(common.FORMATS) == contract.FORMATS


def test_plugins_are_listed_by_kind(install, vmm_msi):
    install()
    document = json.loads(vmm_msi("plugins", "list", "--format", "json")[1])
    kinds = {plugin["name"]: plugin["kind"] for plugin in document["plugins"]}
    assert kinds["site"] == "doctor-rule"
    assert kinds["site-host"] == "host-reader"
    assert kinds["names"] == "report-format"
    for name in NAMES:
        assert vmm_msi("plugins", "check", name)[0] == 0
