"""``vmm-msi compare``: the JSON document, complete output files, the table for people."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import json_schemas
import pytest
from host.files.arm_host import arm_host
from host.firmware.acpi_builder import iort, its_group, root_complex, smmu_v3
from scenarios import A, B, pair

from vmm_msi import samples
from vmm_msi.domxml.template import nested_guest
from vmm_msi.types import Outcome

TWO_ITS = samples.path("two-its.toml")
BOARD = samples.path("eight-its-server.dtb")
GUEST = samples.path("three-devices.xml")
CAPTURE = Path(__file__).parents[1] / "captures/two-smmus.tar.zst"

DOCUMENT = {"schema", "results"}
RESULT = {"strategy", "applied_by", "options", "verdicts", "costs"}
VERDICT = {
    "device",
    "first",
    "count",
    "outcome",
    "its",
    "expected_its",
    "programmed_iova",
    "possible_iovas",
    "errno",
    "errno_inside",
    "reason",
    "decided_by",
    "trace",
}
COSTS = {"s2_domains", "s2_mappings", "sw_msi_slots", "bindings", "containers"}
STEPS = {"programmed", "s1", "s2", "doorbell", "its", "bypass"}


@pytest.fixture
def compare(vmm_msi):
    def run(*words):
        code, out, err = vmm_msi("compare", "--format", "json", *words)
        assert (code, err) == (0, "")
        return json.loads(out)

    return run


def test_a_machine_without_the_devices_names_what_is_missing(vmm_msi):
    """A missing /dev/iommu is reported first, else the missing devices of the sample."""
    for doorbells in ("its", "witness"):
        words = ("--backend", "iommufd", "--doorbells", doorbells, "--scenario", TWO_ITS)
        code, out, err = vmm_msi("compare", *words)
        assert (code, out) == (5, "")
        assert "opening /dev/iommu: " in err or "the host has no such PCI device" in err
        assert err.count("\n") == 1


def hexadecimal(value):
    return value is None or (isinstance(value, str) and f"{int(value, 16):#x}" == value)


def check(document, devices):
    """Check that a document has exactly these keys, with verdicts on every vector."""
    assert set(document) == DOCUMENT
    assert document["schema"] == 2
    json_schemas.check("compare", document)
    for result in document["results"]:
        assert set(result) == RESULT
        assert set(result["costs"]) == COSTS
        assert all(isinstance(cost, int) for cost in result["costs"].values())
        assert result["options"]["profile"]
        seen = [
            (verdict["device"], verdict["first"] + index)
            for verdict in result["verdicts"]
            for index in range(verdict["count"])
        ]
        assert seen == [(d, vector) for d, count in devices.items() for vector in range(count)]
        for verdict in result["verdicts"]:
            assert set(verdict) == VERDICT
            assert verdict["outcome"] in set(Outcome)
            assert hexadecimal(verdict["programmed_iova"])
            assert {step["step"] for step in verdict["trace"]} <= STEPS
            delivered = verdict["outcome"] == "delivered"
            assert delivered == (verdict["reason"] == "")
            assert (verdict["outcome"] == "refused") or verdict["errno"] is None
            if delivered:
                assert verdict["its"] == verdict["expected_its"]
                assert verdict["trace"][-1]["step"] == "its"
                assert verdict["trace"][-1]["event_id"] == verdict["first"]


def test_every_strategy_in_every_form(compare):
    document = compare("--scenario", TWO_ITS)
    check(document, {A: 4, B: 4})
    shown = {
        (
            result["strategy"],
            result["options"].get("revision") or result["options"].get("mode"),
        )
        for result in document["results"]
    }
    assert shown == {
        *(("coerced", revision) for revision in ("v2", "v4", "v8", "v15")),
        *(("multi-its", mode) for mode in ("s2", "vits", "vsmmu")),
        *(("mapped-page", mode) for mode in ("vits", "s2")),
        ("direct", None),
        ("host-cookie", None),
        ("identity", None),
        ("placed", None),
        ("preset", None),
        ("window", None),
    }


def test_named_strategies_in_their_order(compare):
    words = ("identity", "coerced:revision=v2", "identity", "direct:profile=linux-7.2")
    document = compare("--scenario", TWO_ITS, *(w for n in words for w in ("--strategy", n)))
    check(document, {A: 4, B: 4})
    assert [(r["strategy"], r["options"]["profile"]) for r in document["results"]] == [
        ("identity", "linux-7.2"),
        ("coerced", "linux-7.2-bind"),
        ("identity", "linux-7.2"),
        ("direct", "linux-7.2"),
    ]
    assert document["results"][1]["options"] == {"revision": "v2", "profile": "linux-7.2-bind"}


def test_lpis_are_distinct(compare):
    (result,) = compare("--scenario", TWO_ITS, "--strategy", "identity")["results"]
    lpis = [
        verdict["trace"][-1]["lpi"] + index
        for verdict in result["verdicts"]
        for index in range(verdict["count"])
    ]
    assert len(set(lpis)) == len(lpis) == 8


def test_schema_1_has_a_verdict_for_each_vector(compare, vmm_msi):
    """Both schemas say the same, of delivered and of refused MSIs."""
    words = ("--scenario", TWO_ITS, "--strategy", "direct", "--strategy", "identity")
    document = compare(*words, "--schema", "1")
    json_schemas.check("compare-1", document)
    per_vector = []
    for result in compare(*words)["results"]:
        assert (
            result.pop("applied_by") == {"direct": "kernel", "identity": "qemu"}[result["strategy"]]
        )
        verdicts = []
        for verdict in result["verdicts"]:
            for rule_of in (verdict, *verdict["trace"]):
                del rule_of["decided_by"]
            for index in range(verdict.pop("count")):
                one = copy.deepcopy(verdict)
                one["vector"] = one.pop("first") + index
                if one["trace"] and one["trace"][-1]["step"] == "its":
                    one["trace"][-1]["event_id"] += index
                    one["trace"][-1]["lpi"] += index
                verdicts.append(one)
        per_vector.append(result | {"verdicts": verdicts})
    assert document == {"schema": 1, "results": per_vector}
    code, _out, err = vmm_msi("compare", *words, "--schema", "1")
    assert code == 2
    assert "--schema needs --format json" in err


@pytest.mark.parametrize(
    ("kind", "strategy", "problem"),
    [
        ("undelivered", "direct", "--fail-on undelivered: direct: 4 refused, of 8 MSIs"),
        ("undelivered", "host-cookie", "--fail-on undelivered: host-cookie: 8 s1-fault, of 8 MSIs"),
        ("fault", "host-cookie", "--fail-on fault: host-cookie: 8 s1-fault, of 8 MSIs"),
        ("fault", "preset", "--fail-on fault: preset: 4 misrouted, of 8 MSIs"),
        ("refused", "direct", "--fail-on refused: direct: 4 refused, of 8 MSIs"),
        ("refused", "host-cookie", None),
        ("fault", "direct", None),
        ("undelivered", "identity", None),
    ],
)
def test_lost_msis_can_fail_a_build(vmm_msi, kind, strategy, problem):
    words = ("compare", "--scenario", TWO_ITS, "--strategy", strategy)
    without = vmm_msi(*words)
    code, out, err = vmm_msi(*words, "--fail-on", kind)
    assert out == without[1]
    expected = (0, "") if problem is None else (1, f"vmm-msi compare: {problem}\n")
    assert (code, err) == expected


@pytest.mark.parametrize("schema", ["1", "2"])
def test_results_are_checked_against_those_of_an_earlier_run(vmm_msi, nowhere, schema):
    before = nowhere / "before.json"
    words = ("compare", "--scenario", TWO_ITS)
    json_words = ("--format", "json", "--schema", schema, "-o", before)
    assert vmm_msi(*words, *json_words) == (0, "", "")
    assert vmm_msi(*words, "--expect", before)[::2] == (0, "")
    # A strategy that the file has and that does not run is a difference, one more is not.
    named = ("--strategy", "direct", "--strategy", "identity")
    assert vmm_msi(*words, *named, *json_words, "--force") == (0, "", "")
    assert vmm_msi(*words, "--expect", before)[::2] == (0, "")
    code, _out, err = vmm_msi(*words, "--strategy", "direct", "--expect", before)
    assert (code, err) == (
        1,
        "vmm-msi compare: identity: expected, but it was not run with these options\n",
    )
    # Another guest: the second device has a virtual ITS of its own.
    text = before.read_text().replace("0000:02:00.0", "0000:03:00.0")
    before.write_text(text.replace('"s1-fault"', '"s2-fault"'))
    code, _out, err = vmm_msi(*words, "--strategy", "direct", "--expect", before)
    assert code == 1
    assert "direct: 0000:03:00.0: expected refused, but the guest lacks it\n" in err
    assert "direct: 0000:02:00.0: not expected, but it is refused\n" in err


def test_a_changed_outcome_is_named(vmm_msi, nowhere):
    before = nowhere / "before.json"
    words = ("compare", "--scenario", TWO_ITS, "--strategy", "coerced:revision=v2")
    assert vmm_msi(*words, "--format", "json", "-o", before) == (0, "", "")
    document = json.loads(before.read_text())
    (verdicts,) = (result["verdicts"] for result in document["results"])
    second = verdicts[1]
    verdicts[1] = second | {"count": 1, "outcome": "s1-fault", "errno": None}
    verdicts.append(second | {"first": 1, "count": second["count"] - 1})
    before.write_text(json.dumps(document))
    code, _out, err = vmm_msi(*words, "--expect", before)
    assert (code, err) == (
        1,
        (
            "vmm-msi compare: coerced:revision=v2: 0000:02:00.0: expected s1-fault (vector 0), "
            "refused (ENOSPC) (vectors 1 to 3), but it is refused (ENOSPC)\n"
        ),
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "No such file or directory"),
        ("", "not what vmm-msi compare --format json writes"),
        ('{"schema": 3, "results": []}', "schema 3; valid: 1, 2"),
        ('{"schema": 2, "results": [{"strategy": 1}]}', "not what vmm-msi compare"),
        (
            (
                '{"schema": 2, "results": [{"strategy": "direct", "options": {}, "verdicts": [{'
                '"device": "x", "outcome": "refused", "possible_iovas": ["zero"]}]}]}'
            ),
            "invalid literal",
        ),
    ],
)
def test_a_file_that_is_no_result_is_refused_before_the_run(vmm_msi, nowhere, content, problem):
    path = nowhere / "before.json"
    if content is not None:
        path.write_text(content)
    code, out, err = vmm_msi("compare", "--scenario", TWO_ITS, "--expect", path)
    assert (code, out) == (3, "")
    assert problem in err
    assert err.count("\n") == 1


def test_a_device_tree_with_a_guest_xml(compare):
    document = compare("--host", BOARD, "--guest", GUEST)
    check(document, {f"000{segment}:01:00.0": 1 for segment in range(3)})
    by_name = {
        result["strategy"]: [verdict["outcome"] for verdict in result["verdicts"]]
        for result in document["results"]
    }
    assert by_name["multi-its"] == by_name["identity"] == ["delivered"] * 3
    assert by_name["host-cookie"] == ["s1-fault"] * 3
    # A and B share SMMU 0 and the guest's one doorbell; C is behind another SMMU.
    assert by_name["direct"] == ["delivered", "refused", "delivered"]


@pytest.mark.parametrize(("name", "count"), [("two-its.toml", 2), ("eight-its.toml", 8)])
def test_a_host_in_toml_needs_no_guest(compare, name, count):
    document = compare("--host", samples.path(name), "--strategy", "multi-its")
    (result,) = document["results"]
    assert len({verdict["device"] for verdict in result["verdicts"]}) == count
    assert {verdict["outcome"] for verdict in result["verdicts"]} == {"delivered"}


def test_devices_by_address(compare):
    words = ("--device", "0003:01:00.0", "--device", "0000:01:00.0", "--strategy", "multi-its")
    document = compare("--host", BOARD, *words)
    check(document, {"0003:01:00.0": 1, "0000:01:00.0": 1})


ON_COMMAND_LINE = """\
<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>args</name>
<memory unit='GiB'>4</memory><os firmware='efi'><type arch='aarch64' machine='virt'>hvm</type></os>
<features><acpi/></features><devices><controller type='pci' index='0' model='pcie-root'/></devices>
<qemu:commandline>
  <qemu:arg value='-object'/><qemu:arg value='iommufd,id=fd'/>
  <qemu:arg value='-device'/><qemu:arg value='pxb-pcie,id=pxb,bus_nr=8,bus=pcie.0'/>
  <qemu:arg value='-device'/><qemu:arg value='arm-smmuv3,primary-bus=pxb,accel=on'/>
  <qemu:arg value='-device'/><qemu:arg value='pcie-root-port,id=port,chassis=2,bus=pxb'/>
  <qemu:arg value='-device'/><qemu:arg value='vfio-pci,host=01:00.0,bus=port,iommufd=fd'/>
</qemu:commandline></domain>
"""


def test_a_guest_with_its_device_on_the_command_line(compare, vmm_msi, tmp_path):
    """compare and status know the same devices as the doctor."""
    path = tmp_path / "args.xml"
    path.write_text(ON_COMMAND_LINE)
    (result,) = compare("--host", BOARD, "--domain", path, "--strategy", "identity")["results"]
    verdicts = [(verdict["device"], verdict["outcome"]) for verdict in result["verdicts"]]
    assert verdicts == [("0000:01:00.0", "delivered")]
    assert "not attached by vmm-msi: 0000:01:00.0\n" in vmm_msi("status", path)[1]


def test_devices_beside_those_of_a_guest_xml(compare):
    words = ("--guest", GUEST, "--device", "0003:01:00.0", "--strategy", "multi-its")
    document = compare("--host", BOARD, *words)
    check(document, {f"000{segment}:01:00.0": 1 for segment in range(4)})


def test_a_capture_alone_stands_for_every_assignable_device(compare):
    """Neither bridges nor functions that the kernel put behind no SMMU."""
    document = compare("--host", CAPTURE, "--strategy", "multi-its")
    names = ("11:00.0", "12:00.0", "13:00.0", "13:00.1", "14:00.0", "21:00.0", "22:00.0")
    vectors = {f"0000:{name}": 65 if name == "14:00.0" else 1 for name in names}
    check(document, vectors)


def test_a_device_of_a_capture(compare):
    document = compare("--host", CAPTURE, "--device", "0000:21:00.0", "--strategy", "identity")
    check(document, {"0000:21:00.0": 1})


def test_a_device_without_a_route_is_skipped_unless_it_was_selected(vmm_msi, tmp_path, caplog):
    host = arm_host(tmp_path, devices=33)
    tables = (
        its_group(0),
        smmu_v3((0, 0xFFFF, 0x0, 0, 0)),
        root_complex((0, 0x1FF, 0x0, 1, 0)),
    )
    host.file("/sys/firmware/acpi/tables/IORT", iort(*tables))
    words = ("compare", "--format", "json", "--strategy", "identity", "--host", tmp_path)
    code, out, err = vmm_msi(*words)
    assert (code, out) == (5, "")
    assert "smmu-not-driven" in json.loads(err)["findings"]
    code, out, err = vmm_msi(*words, "--allow-faults")
    assert code == 0
    assert "note: smmu-not-driven (SMMU 0 (0x2b600000)): " in err
    devices = {verdict["device"] for verdict in json.loads(out)["results"][0]["verdicts"]}
    assert len(devices) == 32
    assert "0000:02:00.0" not in devices
    (warning,) = caplog.messages
    assert warning.startswith(f"finding 0000:02:00.0 in {tmp_path}: no route covers it; valid: ")
    assert warning.endswith("; it is skipped")
    selected = ("--device", "0000:02:00.0", "--allow-faults")
    code, out, err = vmm_msi("compare", "--host", tmp_path, *selected)
    assert (code, out) == (3, "")
    assert "no route covers it" in err


def test_a_host_in_toml_with_a_guest_xml(compare, tmp_path):
    host = tmp_path / "host.toml"
    text = pair("own").toml()
    host.write_text(text[: text.index("[guest]")], encoding="utf-8")
    guest = tmp_path / "guest.xml"
    hostdev = "<hostdev mode='subsystem' type='pci'><source><address bus='2'/></source></hostdev>"
    text = str(nested_guest("one", memory=1 << 30))
    guest.write_text(text.replace("</devices>", f"{hostdev}</devices>"), encoding="utf-8")
    check(compare("--host", host, "--guest", guest), {B: 2})


def test_text(vmm_msi):
    """A row per strategy, the outcome of each device, where and why, kernels, and a legend."""
    code, out, err = vmm_msi("compare", "--scenario", TWO_ITS)
    assert (code, err) == (0, "")
    rows = {tuple(line.split()) for line in out.splitlines()}
    head = ("strategy", "applied", "by", "delivered", "S2", "maps", "slots", "bindings")
    assert tuple(out.splitlines()[0].split()) == (*head, A, "ITS", "0", B, "ITS", "1")
    both = ("delivered", "delivered")
    assert ("multi-its:mode=s2", "patched", "kernel", "8/8", "2", "2", "0", "2", *both) in rows
    assert ("identity", "QEMU,", "stock", "kernel", "8/8", "1", "2", "2", "0", *both) in rows
    row = ("direct", "patched", "kernel", "4/8", "1", "1", "0", "1", "delivered", "refused")
    assert row in rows
    words = " ".join(out.split())
    assert f"{A} delivered at 0x8000040 or 0x8001040; the same for {B}" in words
    assert f"{B} refused: binding doorbell 0x8090000 of {B} to ITS 1: conflict, {A} has" in words
    legend = {line[2:22].rstrip() for line in out.partition("\nLegend:\n")[2].splitlines()}
    outcomes = {"delivered", "s1-fault", "misrouted", "refused"}
    assert legend - {""} == outcomes | set(head[4:]) | {
        "QEMU, stock kernel",
        "patched kernel",
        "simulator",
    }


def test_options_of_the_configuration_apply(compare, nowhere):
    (nowhere / "vmm-msi.toml").write_text(
        '[strategies.coerced]\nrevision = "v8"\n[strategies.direct]\nprofile = "series-v3"\n',
        encoding="utf-8",
    )
    named = ("coerced", "direct", "direct:profile=series-v2")
    document = compare("--scenario", TWO_ITS, *(w for n in named for w in ("--strategy", n)))
    shown = [result["options"]["profile"] for result in document["results"]]
    assert shown == ["linux-7.2-bind", "series-v3", "series-v2"]


@pytest.mark.parametrize("form", ["json", "text"])
def test_an_output_file_appears_when_it_is_complete(vmm_msi, nowhere, form):
    expected = vmm_msi("compare", "--scenario", TWO_ITS, "--format", form)[1]
    target = nowhere / "out"
    target.write_text("what was there", encoding="utf-8")
    words = ("compare", "--scenario", TWO_ITS, "--format", form, "-o", target)
    code, out, err = vmm_msi(*words)
    assert (code, out) == (1, "")
    assert f"writing {target}: it exists already; --force overwrites it" in err
    assert target.read_text(encoding="utf-8") == "what was there"
    assert vmm_msi(*words, "--force") == (0, "", "")
    assert target.read_text(encoding="utf-8") == expected
    assert [path.name for path in nowhere.iterdir()] == ["out"]


def test_a_failed_run_keeps_the_old_output_file(vmm_msi, nowhere):
    target = nowhere / "out"
    target.write_text("what was there", encoding="utf-8")
    config = nowhere / "vmm-msi.toml"
    config.write_text('its_selector = "nope"\n', encoding="utf-8")
    code, out, err = vmm_msi("compare", "--scenario", TWO_ITS, "-o", target, "--force")
    assert (code, out) == (2, "")
    assert "its-selector 'nope'" in err
    assert target.read_text(encoding="utf-8") == "what was there"
    assert {path.name for path in nowhere.iterdir()} == {"out", "vmm-msi.toml"}


@pytest.mark.parametrize("target", ["/", ".", "..", "missing/out", "", "folder"])
def test_an_invalid_output_file(vmm_msi, nowhere, target):
    (nowhere / "folder").mkdir()
    code, out, err = vmm_msi("compare", "--scenario", TWO_ITS, "-o", target)
    assert (code, out) == (1, "")
    assert err.startswith("vmm-msi compare: writing ")
    assert err.count("\n") == 1
    assert list(nowhere.rglob("*")) == [nowhere / "folder"]


def test_proposed_kernels_are_named_as_such(vmm_msi):
    names = ("preset", "window", "identity")
    chosen = [word for name in names for word in ("--strategy", name)]
    code, out, _err = vmm_msi("compare", "--scenario", TWO_ITS, *chosen)
    assert code == 0
    rows = {tuple(line.split("  ")[0:1] + line.split()[1:]) for line in out.splitlines()}
    assert ("linux-vfio-msi-iova", "proposed,", "not", "merged", "preset") in rows
    assert ("linux-sw-msi-option", "proposed,", "not", "merged", "window") in rows
    assert ("linux-7.2", "released", "identity") in rows
