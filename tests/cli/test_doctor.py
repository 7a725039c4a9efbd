"""``vmm-msi doctor``: input, output, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from host.files.arm_host import RELEASE, arm_host
from host.firmware.acpi_builder import iort, its_group, madt, root_complex, smmu_v3

from vmm_msi import samples
from vmm_msi.cli.doctor import EXIT_ERRORS, EXIT_WARNINGS
from vmm_msi.doctor import pages
from vmm_msi.host.files.capture import take_capture
from vmm_msi.host.files.folder import FolderTree

BOARD = samples.path("eight-its-server.dtb")
TWO = samples.path("two-its.toml")
NODE = f"test://{samples.path('test-driver.xml')}"

TWO_SMMUS = Path(__file__).parent.parent / "captures" / "two-smmus.tar.zst"

#: The finding about every host without files of its own.
NOT_CHECKED = ["kernel-not-checked"]

POOR = """\
[host]
granule = "4K"

[[host.smmu]]
id = 0
nested = false

[[host.its]]
id = 0
base = 0x200000000

[[host.its]]
id = 1
base = 0x200040000

[[host.device]]
address = "0000:01:00.0"
smmu = 0
its_group = [0]
iommu_group = 1

[[host.device]]
address = "0000:02:00.0"
smmu = 0
its_group = [1]
iommu_group = 1
"""


@pytest.fixture
def poor(nowhere):
    file = nowhere / "poor.toml"
    file.write_text(POOR)
    return file


@pytest.fixture
def server(nowhere):
    """The files of a host with three devices, in a folder."""
    folder = nowhere / "server"
    arm_host(folder, 3)
    return folder


@pytest.fixture
def captured(server):
    """A capture of the same host."""
    file = server.parent / "server.tar.zst"
    file.write_bytes(take_capture(FolderTree(server)).packed("test"))
    return file


def acpi_tables(folder):
    (folder / "IORT").write_bytes(IORT)
    (folder / "APIC").write_bytes(madt((0, 0x30000000)))
    return folder


def listing(folder):
    file = folder / "groups.txt"
    file.write_text("/sys/kernel/iommu_groups/3/devices/0000:01:00.0\n")
    return file


def ids(document):
    return list(dict.fromkeys(finding["id"] for finding in document["findings"]))


def check(vmm_msi, *arguments):
    """Return the exit code and the JSON."""
    code, out, err = vmm_msi("doctor", *arguments, "--format", "json")
    assert err == ""
    return code, json.loads(out)


def test_a_healthy_host(vmm_msi):
    code, out, err = vmm_msi("doctor", TWO_SMMUS)
    assert (code, err) == (0, "")
    assert out.endswith(f"{TWO_SMMUS}, 7 devices: 1 note; use --explain ID for details\n")


IORT = iort(its_group(0), smmu_v3((0, 0x10000, 0, 0, 0)), root_complex((0, 0x10000, 0, 1, 0)))
DESCRIPTIONS = {
    "a device tree": lambda _folder: BOARD,
    "a TOML file": lambda _folder: TWO,
    "ACPI tables": acpi_tables,
    "a listing of IOMMU groups": listing,
    "libvirt's node devices": lambda _folder: NODE,
}


@pytest.mark.parametrize("description", DESCRIPTIONS.values(), ids=DESCRIPTIONS)
@pytest.mark.parametrize("options", [(), ("--device", "0000:01:00.0")])
def test_a_description_is_no_all_clear(vmm_msi, nowhere, description, options):
    """It has no kernel, so nothing is known to work."""
    host = description(nowhere)
    code, document = check(vmm_msi, host, *options)
    unknown = {one["id"] for one in document["findings"] if one["severity"] == "unknown"}
    assert "kernel-not-checked" in unknown
    assert code in {EXIT_WARNINGS, EXIT_ERRORS}
    _code, out, _err = vmm_msi("doctor", host, *options)
    assert "no problems found" not in out


def test_exit_code_of_errors(vmm_msi, poor):
    code, document = check(vmm_msi, poor)
    assert code == 8
    assert document["counts"] == {"error": 1, "warning": 1, "note": 0, "unknown": 1}
    assert [finding["id"] for finding in document["findings"]] == [
        "smmu-not-nested",
        "group-mixed-its",
        "kernel-not-checked",
    ]
    assert document["devices"] == ["0000:01:00.0", "0000:02:00.0"]
    assert (document["host"], document["domain"], document["host_files"]) == (
        str(poor),
        None,
        False,
    )


def test_exit_code_of_warnings(vmm_msi, poor):
    poor.write_text(POOR.replace("nested = false\n", ""))
    code, document = check(vmm_msi, poor)
    assert code == 9
    assert ids(document) == ["group-mixed-its", *NOT_CHECKED]


def test_only_selected_devices_are_checked(vmm_msi, poor):
    host = POOR.replace("nested = false\n", "")
    head, _, tail = host.rpartition("iommu_group = 1")
    poor.write_text(f"{head}iommu_group = 2{tail}")
    code, document = check(vmm_msi, poor, "--device", "0000:02:00.0")
    assert (code, document["devices"]) == (EXIT_WARNINGS, ["0000:02:00.0"])
    assert ids(document) == [*NOT_CHECKED, "libvirt-unknown"]
    poor.write_text(host)
    code, document = check(vmm_msi, poor, "--device", "0000:02:00.0")
    assert (code, ids(document)) == (
        EXIT_ERRORS,
        ["partial-group", *NOT_CHECKED, "libvirt-unknown"],
    )


@pytest.mark.parametrize("options", [(), ("--strategy", "identity")])
def test_a_missing_device(vmm_msi, poor, options):
    code, document = check(vmm_msi, poor, "--device", "0000:09:00.0", *options)
    assert code == EXIT_ERRORS
    (finding,) = [one for one in document["findings"] if one["id"] == "device-missing"]
    assert finding["evidence"] == [{"where": str(poor), "what": "no such PCI device"}]
    assert finding["remedy"].endswith("such as 0000:01:00.0, 0000:02:00.0.")


def test_a_device_of_a_route(vmm_msi):
    code, document = check(vmm_msi, BOARD, "--device", "0001:01:00.0")
    assert (code, ids(document)) == (EXIT_WARNINGS, [*NOT_CHECKED, "libvirt-unknown"])


def test_address_ranges_without_listed_devices(vmm_msi):
    code, out, _err = vmm_msi("doctor", BOARD)
    assert code == EXIT_WARNINGS
    assert "no devices listed, 8 address ranges, kernel not checked" in out


def test_a_page_is_printed(vmm_msi):
    code, out, err = vmm_msi("doctor", "--explain", "smmu-no-s2fwb")
    assert (code, err) == (0, "")
    assert out == pages.page("smmu-no-s2fwb")


def test_an_unknown_page_suggests_similar_ids(vmm_msi):
    code, out, err = vmm_msi("doctor", "--explain", "smmu-s2fwb")
    assert (code, out) == (2, "")
    assert err.startswith("vmm-msi doctor: finding 'smmu-s2fwb': unknown id; similar: ")
    assert "smmu-no-s2fwb" in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere.toml"], 3, "nowhere.toml"),
        (["nowhere.tar.zst"], 3, "nowhere.tar.zst"),
        (["--root", "nowhere"], 3, "nowhere: not a folder; use one laid out like the host's /"),
        ([TWO, "--strategy", "no-such"], 2, "no-such"),
        ([TWO, "--device", "nonsense"], 3, "nonsense"),
    ],
)
def test_an_error_is_one_line(vmm_msi, arguments, code, message):
    exit_code, out, err = vmm_msi("doctor", *arguments)
    assert (exit_code, out) == (code, "")
    assert message in err
    assert err.count("\n") == 1


# The files of a host.

ON_SERVER = [
    "kernel-no-nested-smmu",
    "kernel-no-vfio-cdev",
    "kernel-no-vfio-pci",
    "unsafe-interrupts-on",
    "sources-disagree",
    "ats-not-promised",
    "iommu-passthrough",
]


def test_a_folder_and_its_capture_are_the_same_host(vmm_msi, server, captured):
    code, of_folder = check(vmm_msi, server)
    assert (code, of_folder["host_files"]) == (EXIT_ERRORS, True)
    assert of_folder["devices"] == ["0000:01:00.0", "0000:01:01.0", "0000:01:02.0"]
    assert ids(of_folder) == ON_SERVER
    assert ids(check(vmm_msi, "--root", server)[1]) == ON_SERVER
    code, of_capture = check(vmm_msi, captured)
    assert code == EXIT_ERRORS
    assert ids(of_capture) == ON_SERVER


def test_evidence_has_paths_of_the_host_not_of_the_folder(vmm_msi, server):
    _code, document = check(vmm_msi, server)
    first = document["findings"][0]
    assert first["evidence"] == [
        {
            "where": f"/boot/config-{RELEASE}",
            "what": "CONFIG_ARM_SMMU_V3_IOMMUFD is not set",
        }
    ]


def test_the_files_are_compared_with_libvirt(vmm_msi, server):
    code, document = check(vmm_msi, server, NODE)
    assert code == EXIT_ERRORS
    assert "sources-disagree" in ids(document)
    assert document["host"] == f"{server} + {NODE}"


def test_descriptions_of_two_hosts_are_refused(vmm_msi, server):
    code, out, err = vmm_msi("doctor", server, BOARD)
    assert (code, out) == (3, "")
    assert f"reading {server} and {BOARD}: they do not describe one host: " in err


def test_the_files_of_two_hosts_are_refused(vmm_msi, server, captured):
    code, out, err = vmm_msi("doctor", server, captured)
    assert (code, out) == (2, "")
    assert err.endswith(
        f"reading {captured}: {server} already has the host's files; use one of them\n"
    )


def test_a_suitable_kernel_has_no_findings(vmm_msi, server):
    options = ("ARM_SMMU_V3_IOMMUFD=y", "VFIO_DEVICE_CDEV=y", "VFIO_PCI=m")
    with (server / f"boot/config-{RELEASE}").open("a") as file:
        file.writelines(f"CONFIG_{option}\n" for option in options)
    code, document = check(vmm_msi, server)
    assert (code, ids(document)) == (EXIT_WARNINGS, ON_SERVER[3:])


def test_unreadable_files_are_reported_once(vmm_msi, server):
    (server / f"boot/config-{RELEASE}").unlink()
    (server / f"boot/config-{RELEASE}").symlink_to(f"config-{RELEASE}")
    code, document = check(vmm_msi, server)
    assert code == EXIT_WARNINGS
    assert {"not-root", "kernel-config-unknown"} <= set(ids(document))


# A guest.

GUEST = samples.path("three-devices.xml")


def test_a_guest_in_a_file(vmm_msi, server):
    code, document = check(vmm_msi, server, "--domain", GUEST)
    assert code == EXIT_ERRORS
    assert document["domain"] == str(GUEST)
    assert document["devices"] == ["0000:01:00.0", "0001:01:00.0", "0002:01:00.0"]
    assert "device-missing" in ids(document)


def test_a_guest_without_a_vsmmu_needs_no_nesting(vmm_msi, server):
    """The kernel of the host cannot nest: an error for a guest only if it is to have a vSMMU."""
    _code, document = check(vmm_msi, server, "--domain", GUEST)
    assert "kernel-no-nested-smmu" not in ids(document)
    _code, document = check(vmm_msi, server, "--domain", GUEST, "--device", "0003:01:00.0")
    assert "kernel-no-nested-smmu" in ids(document)


def test_a_libvirt_domain(vmm_msi):
    node = f"test://{samples.path('test-driver.xml')}"
    code, document = check(vmm_msi, BOARD, "--connect", node, "--domain", "guest0")
    assert (code, document["domain"], ids(document)) == (0, "guest0", [])
    options = ("--connect", node, "--domain", "guest0", "--device", "0000:01:00.0")
    code, document = check(vmm_msi, BOARD, *options)
    assert (code, ids(document)) == (EXIT_WARNINGS, NOT_CHECKED)  # no QEMU runs it
    code, out, err = vmm_msi("doctor", BOARD, "--connect", node, "--domain", "absent")
    assert (code, out) == (6, "")
    assert "absent" in err


def test_a_strategy_without_a_guest(vmm_msi):
    code, document = check(vmm_msi, TWO, "--strategy", "coerced")
    assert (code, ids(document)) == (EXIT_ERRORS, ["strategy-not-carried", *NOT_CHECKED])
    code, document = check(vmm_msi, TWO, "--strategy", "identity")
    assert (code, ids(document)) == (EXIT_WARNINGS, [*NOT_CHECKED, "libvirt-unknown"])


def test_a_device_is_checked_with_the_default_strategy(vmm_msi, nowhere):
    """That of the configuration, or identity; --strategy overrides it."""
    code, document = check(vmm_msi, TWO, "--device", "0000:01:00.0")
    assert (code, ids(document)) == (EXIT_WARNINGS, [*NOT_CHECKED, "libvirt-unknown"])
    (nowhere / "vmm-msi.toml").write_text('strategy = "host-cookie"\n')
    code, document = check(vmm_msi, TWO, "--device", "0000:01:00.0")
    assert code == EXIT_ERRORS
    assert ids(document) == ["strategy-not-carried", "msi-lost", *NOT_CHECKED]
    code, document = check(vmm_msi, TWO, "--device", "0000:01:00.0", "--strategy", "identity")
    assert (code, ids(document)) == (EXIT_WARNINGS, [*NOT_CHECKED, "libvirt-unknown"])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--libvirt", "12.8", "--qemu", "11.1"], set()),
        (["--libvirt", "9.0", "--qemu", "11.1"], {"libvirt-too-old"}),
        (["--libvirt", "12.8", "--qemu", "10.0"], {"qemu-too-old"}),
        (["--libvirt", "9.0.0", "--qemu", "7.2.1"], {"libvirt-too-old", "qemu-too-old"}),
        (["--qemu", "10.0"], {"qemu-too-old", "libvirt-unknown"}),
        (["--libvirt", "9.0"], {"libvirt-too-old", "libvirt-unknown"}),
    ],
)
def test_named_releases(vmm_msi, options, expected):
    """They are those of --connect or of a capture otherwise."""
    code, document = check(vmm_msi, TWO, "--device", "0000:01:00.0", *options)
    wrong = [finding for finding in document["findings"] if finding["severity"] == "error"]
    assert code == (EXIT_ERRORS if expected else EXIT_WARNINGS)
    assert {*ids(document)} == {*NOT_CHECKED, *expected}
    for finding in wrong:
        program = finding["id"].partition("-")[0]
        assert finding["evidence"][0]["where"] == f"--{program}"


def test_named_releases_override_those_of_libvirt(vmm_msi):
    options = ("--connect", NODE, "--device", "0000:01:00.0")
    _code, document = check(vmm_msi, BOARD, *options)
    assert "libvirt-too-old" in ids(document)
    _code, document = check(vmm_msi, BOARD, *options, "--libvirt", "12.8")
    assert "libvirt-too-old" not in ids(document)


def test_one_unknown_release(vmm_msi):
    options = ("--device", "0000:01:00.0", "--strategy", "identity", "--libvirt", "12.8")
    code, document = check(vmm_msi, TWO, *options)
    assert (code, ids(document)) == (EXIT_WARNINGS, [*NOT_CHECKED, "libvirt-unknown"])
    assert document["findings"][1]["evidence"][0]["what"] == "release of QEMU not reported"


@pytest.mark.parametrize("option", ["--libvirt", "--qemu"])
def test_a_malformed_release(vmm_msi, option):
    code, out, err = vmm_msi("doctor", TWO, option, "new")
    assert (code, out) == (2, "")
    assert err.startswith(f"vmm-msi doctor: {option} 'new': not a release")


def test_the_selected_configuration_is_read(vmm_msi):
    code, out, err = vmm_msi("doctor", TWO, "--config", "missing.toml")
    assert (code, out) == (3, "")
    assert "missing.toml" in err


def test_a_remote_libvirt_needs_a_host(vmm_msi):
    code, out, err = vmm_msi("doctor", "--connect", "qemu+ssh://far/system", "--domain", "g")
    assert (code, out) == (2, "")
    assert "checking qemu+ssh://far/system: it is on another machine" in err


def test_what_fails(vmm_msi, nowhere):
    """Without --fail-on: warnings, and checks that could not run."""
    (nowhere / "host.toml").write_text(TWO.read_text())
    for levels, code in (
        ((), EXIT_WARNINGS),
        (("error",), 0),
        (("warning",), 0),
        (("note",), 0),
        (("unknown",), EXIT_WARNINGS),
        (("error", "unknown"), EXIT_WARNINGS),
    ):
        words = [word for level in levels for word in ("--fail-on", level)]
        assert vmm_msi("doctor", "host.toml", *words)[0] == code, levels
    notes = ("doctor", TWO_SMMUS)
    assert vmm_msi(*notes)[0] == 0
    assert vmm_msi(*notes, "--fail-on", "note")[0] == EXIT_WARNINGS
    assert vmm_msi(*notes, "--fail-on", "warning")[0] == 0


def test_errors_always_fail(vmm_msi, poor):
    assert vmm_msi("doctor", poor, "--fail-on", "error")[0] == vmm_msi("doctor", poor)[0]
    code, out, _err = vmm_msi("doctor", poor, "--device", "0000:01:00.0", "--fail-on", "error")
    assert (code, out.startswith("ERROR ")) == (EXIT_ERRORS, True)


def test_ignored_findings_are_counted(vmm_msi):
    code, out, _err = vmm_msi("doctor", TWO_SMMUS, "--ignore", "host-driver", "--fail-on", "note")
    assert (code, out) == (0, f"{TWO_SMMUS}, 7 devices: no problems found, 1 ignored\n")
    words = ("doctor", TWO_SMMUS, "--format", "json", "--ignore")
    document = json.loads(vmm_msi(*words, "host-driver:0000:14:00.0")[1])
    assert document["findings"] == []
    assert document["ignored"] == {"error": 0, "warning": 0, "note": 1, "unknown": 0}
    document = json.loads(vmm_msi(*words, "host-driver:0000:13:00.0")[1])
    assert [finding["id"] for finding in document["findings"]] == ["host-driver"]
    assert document["ignored"]["note"] == 0


def test_an_ignored_error_does_not_fail(vmm_msi, poor):
    words = ("doctor", poor, "--device", "0000:01:00.0", "--format", "json")
    document = json.loads(vmm_msi(*words)[1])
    errors = {f["id"] for f in document["findings"] if f["severity"] == "error"}
    ignore = [word for name in sorted(errors) for word in ("--ignore", name)]
    code, out, _err = vmm_msi(*words, *ignore, "--fail-on", "error")
    assert code == 0
    assert json.loads(out)["ignored"]["error"] == document["counts"]["error"] > 0


@pytest.mark.parametrize(
    ("text", "expected", "message"),
    [
        ("host-drive", 2, "finding 'host-drive': unknown id; similar: "),
        ("host-driver:no-address", 3, "PCI address 'no-address': not of the form"),
        ("", 2, "finding '': unknown id"),
    ],
)
def test_an_unknown_finding_cannot_be_ignored(vmm_msi, text, expected, message):
    code, out, err = vmm_msi("doctor", TWO_SMMUS, "--ignore", text)
    assert (code, out) == (expected, "")
    assert message in err
