"""What the library returns against what the commands print, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from depth import depth
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from provision.helpers import HOST_FILE, A, B, node_file

import vmm_msi
from vmm_msi import VmmMsiError, samples
from vmm_msi.cli import main
from vmm_msi.errors import FindingsError, HypervisorError, InputError, TopologyError, UsageError

HOST = str(HOST_FILE)
TWO_ITSES = str(samples.path("two-its.toml"))
SCENARIO = str(samples.path("eight-its.toml"))
CAPTURES = Path(__file__).parents[1] / "doctor" / "captures"
GUEST = str(samples.path("three-devices.xml"))
EVENT = "arm-smmu-v3 arm-smmu-v3.0.auto: event 0x10 received:\n" + "".join(
    f"arm-smmu-v3 arm-smmu-v3.0.auto: \t{word}\n"
    for word in ("0x0000010000000010", "0x0000020800000000", "0x0000000008000040", "0x0")
)
PLUGINS = vmm_msi.PluginManager.load()


@pytest.fixture
def printed(capfdbinary):
    """Return a function that runs a command and returns the document that it prints."""

    def run(*words):
        main([*words, "--format", "json"])
        return json.loads(capfdbinary.readouterr().out)

    return run


def test_topology_is_what_topology_show_prints(printed):
    document = printed("topology", "show", HOST, "--granule", "64K")
    assert vmm_msi.load_host(HOST, "64K").to_json() == document
    assert vmm_msi.topology(HOST_FILE, 65536).to_json() == document
    host = vmm_msi.load_host([HOST, f"test://{samples.path('test-driver.xml')}"])
    both = printed("topology", "show", HOST, f"test://{samples.path('test-driver.xml')}")
    assert host.to_json() == both
    assert vmm_msi.topology(host.topology).topology == host.topology


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ([], {}),
        (["--device", str(A)], {"devices": A}),
        (["--device", "01:00.0", "--strategy", "direct"],
         {"devices": "01:00.0", "strategy": "direct"}),
        (["--domain", GUEST], {"domain": GUEST}),
        (["--domain", GUEST, "--libvirt", "12.8", "--qemu", "11.0.1"],
         {"domain": GUEST, "libvirt": "12.8", "qemu": "11.0.1"}),
        (["--granule", "4K"], {"granule": "4K"}),
    ],
)  # fmt: skip
def test_an_examination_is_what_doctor_prints(printed, words, arguments):
    examination = vmm_msi.examine(HOST, **arguments)
    assert examination.to_json() == printed("doctor", HOST, *words)
    assert list(examination.to_lines())[-1].startswith(HOST)


def test_an_examination_of_a_guest_in_libvirt(printed, tmp_path):
    uri = f"test://{node_file(tmp_path)}"
    words = ("--domain", "guest0", "-c", uri, "--device", str(A))
    document = printed("doctor", HOST, *words)
    host = vmm_msi.load_host(HOST)
    assert vmm_msi.examine(host, A, "guest0", uri=uri).to_json() == document
    with pytest.raises(UsageError, match="guest guest0: no libvirt to query"):
        vmm_msi.examine(host, A, "guest0")


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        (["--scenario", SCENARIO], {"scenario": SCENARIO}),
        (["--host", HOST, "--device", str(A), "--device", str(B), "--allow-faults"],
         {"host": HOST, "devices": (str(A), B), "allow_faults": True}),
        (["--host", HOST, "--domain", GUEST, "--strategy", "multi-its:mode=s2", "--allow-faults"],
         {"host": HOST, "domain": GUEST, "strategies": "multi-its:mode=s2", "allow_faults": True}),
        (["--host", HOST, "--device", str(A), "--strategy", "direct", "--strategy", "identity",
          "--allow-faults"],
         {"host": HOST, "devices": A, "strategies": ["direct", "identity"],
          "allow_faults": True}),
    ],
)  # fmt: skip
def test_a_comparison_is_what_compare_prints(printed, words, arguments):
    comparison = vmm_msi.compare(**arguments)
    assert comparison.to_json() == printed("compare", *words)
    assert next(comparison.to_lines()).startswith("strategy")


def test_a_comparison_refuses_what_the_doctor_does(tmp_path):
    host = tmp_path / "not-nested.toml"
    text = Path(TWO_ITSES).read_text().partition("[guest]")[0]
    host.write_text(text.replace("smmu]]\nid = 0", "smmu]]\nid = 0\nnested = false"))
    with pytest.raises(FindingsError, match="comparing strategies") as raised:
        vmm_msi.compare(host)
    assert raised.value.code == "findings"
    assert vmm_msi.compare(host, strategies="identity", allow_faults=True).notes
    with pytest.raises(UsageError, match="a scenario has its own host"):
        vmm_msi.compare(HOST, scenario=SCENARIO)
    with pytest.raises(UsageError, match="no host; use a host or a scenario"):
        vmm_msi.compare()


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        (["--host", HOST], {"host": HOST}),
        (["--host", HOST, "--domain", GUEST], {"host": HOST, "domain": GUEST}),
        (["--host", HOST, "--domain", GUEST, "--in-guest"],
         {"host": HOST, "domain": GUEST, "in_guest": True}),
    ],
)  # fmt: skip
def test_an_explanation_is_what_explain_prints(printed, words, arguments):
    explanation = vmm_msi.explain_log(EVENT, **arguments)
    assert explanation.is_recognised
    assert explanation.to_json() == printed("explain", EVENT, *words)
    assert vmm_msi.explain_log(EVENT.encode("utf-16"), **arguments) == explanation


def test_an_explanation_without_a_host():
    explanation = vmm_msi.explain_log("hello")
    assert not explanation.is_recognised
    assert list(explanation.to_lines()) == ["no line was recognised", "1 line not recognised"]


def test_a_host_by_name_or_value_is_attached_alike(tmp_path):
    uri = f"test://{node_file(tmp_path)}"
    request = vmm_msi.AttachRequest("guest0", str(A))
    with vmm_msi.connect(uri) as connection:
        plans = [
            vmm_msi.plan_attach(connection, PLUGINS, vmm_msi.Config(), host, request)
            for host in (HOST, vmm_msi.load_host(HOST), vmm_msi.load_host(HOST).topology)
        ]
        assert len({str(plan.after) for plan in plans}) == 1
        with pytest.raises(UsageError, match="plugins 'direct': not plugins"):
            vmm_msi.attach(connection, "direct", None, HOST, request)
        vmm_msi.attach(connection, None, None, HOST, request)
        assert vmm_msi.status(connection, "guest0", "config").record.devices[0].host == A
        with pytest.raises(UsageError, match="scope 'always': unknown; valid: config, live, both"):
            vmm_msi.status(connection, "guest0", "always")


def test_a_change_is_what_attach_and_detach_print(printed, tmp_path):
    uri = f"test://{node_file(tmp_path)}"
    target = ("guest0", str(A), "-c", uri)
    attach = vmm_msi.AttachRequest("guest0", A)
    detach = vmm_msi.DetachRequest("guest0", "0000:01:00.0")
    with vmm_msi.connect(uri) as connection:
        arguments = (connection, PLUGINS, vmm_msi.Config(), HOST, attach)
        planned = vmm_msi.plan_attach(*arguments)
        assert planned.to_json() == printed("attach", *target, "--host", HOST, "--dry-run")
        attached = vmm_msi.attach(*arguments)
        document = printed("attach", *target, "--host", HOST)
        # The command's own connection ends with it, and libvirt's test driver with that.
        assert "the change is lost" in document["notes"].pop()
        assert attached.to_json() == document
        assert vmm_msi.attach(*arguments).to_json()["done"] == f"already attached: {A}"
        assert vmm_msi.plan_detach(connection, detach).to_json()["devices"] == []
        document = vmm_msi.detach(connection, detach).to_json()
        assert (document["domain"], document["done"]) == ("guest0", f"detached {A}")


def test_a_file_of_a_guest_by_its_path(tmp_path, monkeypatch):
    (tmp_path / "guest").write_text(Path(GUEST).read_text())
    monkeypatch.chdir(tmp_path)
    by_path = vmm_msi.examine(HOST, domain=Path("guest"))
    by_text = vmm_msi.examine(HOST, domain=GUEST)
    assert by_path.to_json()["counts"] == by_text.to_json()["counts"]
    assert by_path.to_json()["domain"] == "./guest"


# What is refused: each error is of the package's tree, with a code.


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: vmm_msi.load_host("nothing.dtb"), TopologyError, "cannot be read"),
        (lambda: vmm_msi.load_host(""), TopologyError, "folder"),
        (lambda: vmm_msi.load_host("a\0b"), UsageError, "not a path"),
        (lambda: vmm_msi.load_host(b"x.dtb"), UsageError, "not a path"),
        (lambda: vmm_msi.load_host(None), UsageError, "host None: not a path"),
        (lambda: vmm_msi.load_host([]), UsageError, "reading a host: no name"),
        (lambda: vmm_msi.load_host(HOST, "5K"), InputError, "granule '5K': not one of 4K"),
        (lambda: vmm_msi.load_host(HOST, 5), InputError, "granule 5: not one of 4K"),
        (lambda: vmm_msi.load_host("nonsense://x"), HypervisorError, "connecting to nonsense://x"),
        (lambda: vmm_msi.load_host("test://["), HypervisorError, "Invalid IPv6 URL"),
        (lambda: vmm_msi.load_host("test://\0"), UsageError, "not a path"),
        (lambda: vmm_msi.load_host([HOST, TWO_ITSES]), TopologyError, "one host"),
        (lambda: vmm_msi.examine(HOST, strategy="nonsense"), UsageError, "nonsense"),
        (lambda: vmm_msi.examine(HOST, libvirt="new"), UsageError, "libvirt 'new': not a release"),
        (lambda: vmm_msi.examine(HOST, domain="-"), UsageError, "standard input belongs to"),
        (lambda: vmm_msi.examine(HOST, domain=5), UsageError, "guest 5: not a guest"),
        (lambda: vmm_msi.examine(HOST, plugins="direct"), UsageError, "plugins 'direct': not"),
        (lambda: vmm_msi.examine(HOST, settings="x.toml"), UsageError, "settings 'x.toml': not a"),
        (lambda: vmm_msi.compare(HOST, A, strategies="direct:x"), UsageError, "not of the form"),
        (lambda: vmm_msi.compare(HOST, A, strategies=5), UsageError, "strategy 5"),
        (lambda: vmm_msi.compare(scenario=5), UsageError, "scenario 5: not a path"),
        (lambda: vmm_msi.explain_log(5), UsageError, "text 5: not a log"),
        (lambda: vmm_msi.Connection("test:///default"), UsageError, "use vmm_msi.connect"),
        (lambda: vmm_msi.load_config("missing.toml"), InputError, "missing.toml"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_with_a_message(call, error, message):
    with pytest.raises(error, match=message) as raised:
        call()
    assert raised.value.code != "error"


def open_connection(uri):
    with vmm_msi.connect(uri) as connection:
        connection.names()


CALLS = {
    "host": lambda text: vmm_msi.load_host(f"missing-{text}"),
    "granule": lambda text: vmm_msi.load_host(HOST, text),
    "device": lambda text: vmm_msi.examine(HOST, text, plugins=PLUGINS),
    "guest": lambda text: vmm_msi.examine(HOST, domain=text, plugins=PLUGINS),
    "file of a guest": lambda text: vmm_msi.examine(HOST, domain=f"missing/{text}"),
    "strategy": lambda text: vmm_msi.examine(HOST, strategy=text, plugins=PLUGINS),
    "libvirt": lambda text: vmm_msi.examine(HOST, libvirt=text, plugins=PLUGINS),
    "qemu": lambda text: vmm_msi.examine(HOST, qemu=text, plugins=PLUGINS),
    "compare: device": lambda text: vmm_msi.compare(HOST, text, plugins=PLUGINS),
    "compare: strategy": lambda text: vmm_msi.compare(
        HOST, A, strategies=text, plugins=PLUGINS, allow_faults=True
    ),
    "compare: option": lambda text: vmm_msi.compare(
        HOST, A, strategies=f"multi-its:mode={text}", plugins=PLUGINS, allow_faults=True
    ),
    "scenario": lambda text: vmm_msi.compare(scenario=f"missing-{text}", plugins=PLUGINS),
    "explain: text": lambda text: vmm_msi.explain_log(text, HOST, plugins=PLUGINS),
    "explain: guest": lambda text: vmm_msi.explain_log(
        EVENT, HOST, f"missing/{text}", plugins=PLUGINS
    ),
    "config": lambda text: vmm_msi.load_config(f"missing-{text}"),
    "doctor: URI": lambda text: vmm_msi.examine(HOST, A, uri=f"test:///missing-{text}"),
    "guest in libvirt": lambda text: vmm_msi.explain_log(
        EVENT, HOST, text.replace("/", ""), uri=f"test://{samples.path('test-driver.xml')}"
    ),
    "URI": lambda text: open_connection(f"test:///missing-{text}"),
}


@pytest.mark.parametrize("argument", CALLS)
@settings(
    max_examples=depth(60),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(text=st.text())
@example(text="x" * 5000)
@example(text="a/" * 2500)
def test_any_text_is_read_or_refused_with_a_code(argument, text):
    try:
        CALLS[argument](text)
    except VmmMsiError as error:
        code = error.code
    else:
        code = None
    assert code != "error"
