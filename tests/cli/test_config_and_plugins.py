"""``vmm-msi config check``, the search path of the configuration, and ``vmm-msi plugins list``."""

from __future__ import annotations

import json

import pytest

from vmm_msi.plugins.manager import PluginManager

FULL = """\
strategy = "multi-its"

[plugins]
disabled = ["host-cookie"]

[strategies.multi-its]
mode = "vsmmu"

[[domain]]
name = "guest0"
strategy = "direct"
[[domain.device]]
address = "0000:01:00.0"
strategy = "identity"
"""


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def check(vmm_msi):
    def run(*words):
        code, out, err = vmm_msi("config", "check", "--format", "json", *words)
        assert (code, err) == (0, "")
        return json.loads(out)

    return run


def test_no_configuration(check, vmm_msi):
    assert check() == {
        "schema": 1,
        "path": None,
        "strategy": "identity",
        "its_selector": "first-in-group",
        "domains": {},
        "strategies": {},
        "disabled_plugins": [],
    }
    assert "no configuration file: valid" in vmm_msi("config", "check")[1]


def test_check_shows_what_a_configuration_selects(check, vmm_msi, nowhere):
    path = write(nowhere / "my.toml", FULL)
    assert check("--config", path) == {
        "schema": 1,
        "path": str(path),
        "strategy": "multi-its",
        "its_selector": "first-in-group",
        "domains": {
            "guest0": {
                "strategy": "direct",
                "its_selector": "first-in-group",
                "devices": {"0000:01:00.0": "identity"},
            }
        },
        "strategies": {"multi-its": {"mode": "vsmmu"}},
        "disabled_plugins": ["host-cookie"],
    }
    code, out, err = vmm_msi("config", "check", "--config", path)
    assert (code, err) == (0, "")
    assert out.startswith(f"{path}: valid\n")
    assert ["guest0", "0000:01:00.0", "identity"] in [line.split() for line in out.splitlines()]


def test_the_search_path(check, nowhere, tmp_path, monkeypatch):
    """Each file, added from the last path to the first, takes precedence over the existing ones."""
    home = tmp_path / "home"
    documents = []

    def expect(name, path):
        write(path, f'strategy = "{name}"\n')
        documents.append(check())
        assert documents[-1]["strategy"] == name

    expect("direct", home / ".config/vmm-msi/vmm-msi.toml")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert check()["path"] is None
    expect("coerced", tmp_path / "xdg/vmm-msi/vmm-msi.toml")
    expect("host-cookie", nowhere / "vmm-msi.toml")
    assert documents[-1]["path"] == "vmm-msi.toml"
    monkeypatch.setenv("VMM_MSI_CONFIG", str(tmp_path / "named.toml"))
    expect("multi-its", tmp_path / "named.toml")
    selected = write(tmp_path / "selected.toml", 'strategy = "identity"\n')
    assert check("--config", selected)["path"] == str(selected)
    monkeypatch.setenv("VMM_MSI_CONFIG", "")
    assert check()["path"] == "vmm-msi.toml"
    # A folder of that name is ignored.
    (nowhere / "vmm-msi.toml").unlink()
    (nowhere / "vmm-msi.toml").mkdir()
    assert check()["strategy"] == "coerced"


def test_one_file_is_used_alone(check, nowhere, tmp_path):
    write(tmp_path / "home/.config/vmm-msi/vmm-msi.toml", FULL)
    write(nowhere / "vmm-msi.toml", "")
    assert check()["strategy"] == "identity"
    assert check()["domains"] == {}


WRONG = [
    (
        "\n[[domain]]\nnam = 'x'\n",
        "3: unknown key 'nam' in [domain]; did you mean name? valid keys: ",
    ),
    (
        "strategi = 'x'\n",
        "1: unknown key 'strategi' at top level; did you mean strategies? valid keys: ",
    ),
    (
        "[[domain]]\nname = 'x'\n\n[[domain.device]]\nadress = 'x'\n",
        "5: unknown key 'adress' in [domain.device]; did you mean address? valid keys: address",
    ),
    ("# one\nstrategy = 7\n", "2: strategy: expected string, got integer"),
    ("[[domain]]\n", "1: required key 'name' is missing in [domain]"),
    ("a = \n", "1: not TOML: "),
    ("strategy = 'a'\nstrategy = 'b'\n", "2: not TOML: "),
    ("[[domain]]\nname='a'\n[[domain]]\nname='a'\n", " [[domain]] 'a' is given twice"),
    (
        "[[domain]]\nname='a'\ndevice=[{address='x', strategy='direct'}]\n",
        "PCI address 'x': not of the form 0000:01:00.0",
    ),
    (
        "[[domain]]\nname='a'\n" + 2 * "[[domain.device]]\naddress='01:00.0'\nstrategy='direct'\n",
        "device 0000:01:00.0 is given twice",
    ),
    ("strategy = 'x'\n", "strategy 'x': no such plugin; valid: coerced, direct, "),
    ("[strategies.x]\n", "strategy 'x': no such plugin; valid: coerced, direct, "),
    ("[[domain]]\nname = 'g'\nstrategy = 'x'\n", "strategy 'x': no such plugin"),
    ("[strategies.direct]\nx = 1\n", "strategy direct: unknown option 'x'; valid: profile"),
    ("[strategies.coerced]\nrevision = 'v9'\n", "revision: v15 | v2 | v4 | v8"),
    ("[strategies.coerced]\nprofile = 'v9'\n", "kernel profile 'v9': unknown; valid: pre-series"),
    ("its_selector = 'x'\n", "its-selector 'x': no such plugin; valid: first-in-group"),
    ("its_selector = 'direct'\n", "its-selector 'direct': no such plugin"),
    ("strategy = 'first-in-group'\n", "strategy 'first-in-group': no such plugin"),
    ("strategy = 'direct'\nplugins.disabled = ['direct']\n", "is disabled"),
    ("plugins.disabled = ['nope']\n", "disabling plugin 'nope': no such plugin; valid: coerced"),
]


@pytest.mark.parametrize(("text", "words"), WRONG)
def test_an_invalid_configuration(vmm_msi, nowhere, text, words):
    path = write(nowhere / "wrong.toml", text)
    code, out, err = vmm_msi("config", "check", "--config", path)
    assert (code, out) == (3, "")
    assert err.startswith("vmm-msi config: ")
    assert err.count("\n") == 1
    assert words in err
    assert "profile" in text or str(path) in err


def test_a_missing_named_file(vmm_msi, nowhere, monkeypatch):
    for words, environment in (
        (["--config", "missing.toml"], None),
        ([], str(nowhere / "missing.toml")),
    ):
        if environment is not None:
            monkeypatch.setenv("VMM_MSI_CONFIG", environment)
        code, out, err = vmm_msi("config", "check", *words)
        assert (code, out) == (3, "")
        assert "missing.toml: cannot be read: No such file or directory" in err


# Plugins.


def test_plugins_are_listed(vmm_msi):
    code, out, err = vmm_msi("plugins", "list", "--format", "json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["schema"] == 1
    listed = {plugin["name"]: plugin for plugin in document["plugins"]}
    assert list(listed) == [record.name for record in PluginManager.load().records()]
    coerced = listed["coerced"]
    assert (coerced["kind"], coerced["state"]) == ("strategy", "loaded")
    assert coerced["options"] == {"revision": "v15"}
    assert all(coerced[key] for key in ("origin", "summary", "needs", "guest", "host", "xml"))
    assert listed["first-in-group"]["kind"] == "its-selector"


def test_plugins_as_a_table(vmm_msi):
    code, out, err = vmm_msi("plugins", "list")
    assert (code, err) == (0, "")
    records = PluginManager.load().records()
    lines = out.splitlines()
    assert lines[0].split() == ["plugin", "kind", "state", "from", "what", "for"]
    assert [line.split()[0] for line in lines[2:]] == [record.name for record in records]
    assert all(line.endswith(r.info.summary) for line, r in zip(lines[2:], records, strict=True))
    long = vmm_msi("plugins", "list", "--long")[1]
    assert long.startswith(out)
    for word in ("guest", "host", "XML", "costs", "options"):
        assert long.count(f"\n  {word} ") == 9
    assert "options  revision=v15 (defaults)" in long


@pytest.mark.parametrize("how", ["option", "configuration"])
def test_disabled_plugins(vmm_msi, nowhere, how):
    words = ["--disable-plugin", "direct", "--disable-plugin", "coerced"]
    if how == "configuration":
        write(nowhere / "vmm-msi.toml", "plugins.disabled = ['direct', 'coerced']\n")
        words = []
    listed = json.loads(vmm_msi("plugins", "list", "--format", "json", *words)[1])["plugins"]
    off = {plugin["name"] for plugin in listed if plugin["state"] == "disabled"}
    assert off == {"direct", "coerced"}
    code, out, err = vmm_msi("plugins", "list", "--disable-plugin", "nothing")
    assert (code, out) == (2, "")
    assert "disabling plugin 'nothing': no such plugin; valid: coerced, direct" in err
