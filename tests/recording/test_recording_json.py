"""Recordings are decoded strictly: a file is a recording, or is refused with a reason."""

from __future__ import annotations

import json

import msgspec
import pytest
from recording.hand_made import recording

from vmm_msi.errors import InputError
from vmm_msi.recording import recording_json


def document():
    return json.loads(recording_json.encode(recording()))


def refusal(changed):
    with pytest.raises(InputError) as caught:
        recording_json.decode(json.dumps(changed).encode(), "run.json")
    return str(caught.value).removeprefix("reading recording run.json: ")


def test_an_encoded_recording_is_decoded():
    assert recording_json.decode(recording_json.encode(recording()), "run.json") == recording()


def test_addresses_are_hex_strings():
    content = document()
    assert content["devices"][0]["vectors"][0]["programmed"] == "0x8000040"
    assert content["host"]["devices"][0]["stream_id"] == "0x1100"


def test_the_name_of_the_host_is_absent():
    text = recording_json.encode(recording()).decode()
    assert "lab-guest" not in text
    assert document()["host"]["functions"] == []


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="No such file or directory; valid is a file from vmm-msi"):
        recording_json.read(tmp_path / "run.json")


def test_a_file_above_the_maximum(tmp_path):
    path = tmp_path / "run.json"
    path.write_bytes(b" " * (recording_json.MAX_BYTES + 1))
    message = "the file is larger than 4194304 bytes, which is the maximum"
    with pytest.raises(InputError, match=message):
        recording_json.read(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[]", "it is not a JSON object; valid is a file from vmm-msi record"),
        (b"{}", "schema is None; this vmm-msi reads 1"),
        (b'{"schema": 2}', "schema is 2; this vmm-msi reads 1"),
        (b'{"schema": true}', "schema is True; this vmm-msi reads 1"),
    ],
)
def test_files_without_a_recording(data, message):
    with pytest.raises(InputError) as caught:
        recording_json.decode(data, "run.json")
    assert str(caught.value).startswith(f"reading recording run.json: {message}")


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", msgspec.DecodeError),
        (b"\xff", msgspec.DecodeError),
        (b"[" * 100_000, RecursionError),
        (b'{"schema": 1}', msgspec.ValidationError),
    ],
)
def test_invalid_json(data, cause):
    with pytest.raises(InputError, match=r"^reading recording run\.json: .") as caught:
        recording_json.decode(data, "run.json")
    assert type(caught.value.__cause__) is cause


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["serial"], "1", "serial: unknown key; valid are the keys that vmm-msi record writes"),
        (
            ["host", "smmus", 0, "mac"],
            "1",
            "host.smmus[0].mac: unknown key; valid are the keys that vmm-msi record writes",
        ),
        (
            ["devices", 0, "vectors", 0, "interrupts"],
            -1,
            (
                "devices: 0000:11:00.0: vector 0 with -1 interrupts; valid are numbers from 0 to "
                "2047 and counts from 0"
            ),
        ),
        (
            ["devices", 0, "bindings"],
            [{"giova": "0xfffff000", "gdb": "0x8090000", "page_shift": 31}],
            "devices: 0000:11:00.0: page shift 31; valid is 12 to 30",
        ),
        (["devices"], [], "devices: the list is empty; valid is at least one device"),
        (
            ["guest", "devices"],
            [],
            "guest.devices: the addresses differ from those in devices; valid are the same ones",
        ),
        (
            ["host", "smmus", 0, "id"],
            3,
            "host: 0000:11:00.0 is behind SMMU 0, which is missing",
        ),
        (
            ["host", "devices", 0, "its_group"],
            [],
            "host: 0000:11:00.0 uses ITSes (); valid are those in host.itses",
        ),
        (
            ["guest", "devices", 0, "vits"],
            9,
            "guest: 0000:11:00.0 uses vITS 9, which is missing",
        ),
        (
            ["guest", "devices", 0, "stage1"],
            "x",
            "guest: 0000:11:00.0 uses stage 1 'x', which is missing",
        ),
        (["guest", "memory"], [], "guest.memory: the list is empty; valid is at least one range"),
        (
            ["guest", "memory", 0, "size"],
            0,
            "guest.memory: 0 bytes from 0x40000000; valid is a range within 64 bits",
        ),
        (["slots", 0, "its"], 7, "slots: ITS 7 is not in host.itses"),
    ],
)
def test_inconsistent_recordings(path, value, message):
    changed = document()
    parent = changed
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    assert refusal(changed) == message


@pytest.mark.parametrize("value", [134217792, "0x10000000000000000"])
def test_what_is_no_address(value):
    """The JSON reader adds the path in a form of its own."""
    changed = document()
    changed["devices"][0]["vectors"][0]["programmed"] = value
    message, _, path = refusal(changed).partition(" - ")
    assert message == 'expected Iova, a hex string like "0x8000040"'
    assert "devices[0].vectors[0].programmed" in path


def test_duplicate_devices():
    changed = document()
    changed["devices"] *= 2
    assert refusal(changed) == "devices: duplicate items; valid are unique ones"


def test_too_many_slots():
    changed = document()
    changed["slots"] = [
        {"page": hex(0x8000000 + 0x1000 * n), "its": 0} for n in range(recording_json.MAX_ITEMS + 1)
    ]
    assert refusal(changed) == "slots: 4097 items; valid are up to 4096"
