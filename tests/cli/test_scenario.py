"""``vmm-msi scenario``: files that compare reads as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmm_msi import samples
from vmm_msi.host.scenario import load_scenario
from vmm_msi.types import PciAddress

CAPTURE = Path(__file__).parents[1] / "captures" / "two-smmus.tar.zst"
GUEST = samples.path("three-devices.xml")


@pytest.fixture
def init(vmm_msi, tmp_path):
    """Write a scenario, check its form, and return it and its text."""

    def run(*words):
        path = tmp_path / "scenario.toml"
        code, out, err = vmm_msi("scenario", "init", *words, "-o", path)
        assert (code, out, err) == (0, "", "")
        text = path.read_text()
        assert max(map(len, text.splitlines())) <= 79
        assert vmm_msi("compare", "--scenario", path, "--strategy", "direct")[0] == 0
        return load_scenario(path), text

    return run


def test_the_example(init, vmm_msi):
    scenario, text = init()
    sample = load_scenario(Path(samples.path("two-its.toml")))
    assert scenario.guest == sample.guest
    assert scenario.host.devices == sample.host.devices
    assert "honours_rmr = true              # its stage 1 maps RMRs 1:1\n" in text
    assert text.count("# a PCI function that can be assigned") == 1
    assert vmm_msi("scenario", "init") == (0, text, "")


def test_a_host_and_a_device(init):
    scenario, text = init(
        "--from", samples.path("eight-its-server.dtb"), "--device", "0000:01:00.0",
        "--granule", "64K",
    )  # fmt: skip
    assert [str(device.host) for device in scenario.guest.devices] == ["0000:01:00.0"]
    assert len(scenario.host.smmus) == 4
    assert scenario.host.granule == 65536
    assert scenario.host.routes == ()
    assert text.startswith(f"# A scenario of {samples.path('eight-its-server.dtb')}.\n")


def test_a_guest(init):
    host = samples.path("eight-its.toml")
    scenario, _text = init("--from", host, "--guest", GUEST)
    assert scenario.guest.name == "three-devices"
    assert [device.host.segment for device in scenario.guest.devices] == [0, 1, 2]


def test_every_device_of_a_capture(init):
    scenario, _text = init("--from", CAPTURE)
    assert PciAddress(0, 0x11, 0, 0) in scenario.host.device_by_address
    assert len(scenario.guest.devices) == len(scenario.host.devices)


@pytest.mark.parametrize(
    "words", [["--device", "0000:01:00.0"], ["--guest", "x.xml"], ["--granule", "4K"]]
)
def test_the_example_has_its_own_guest(vmm_msi, words):
    code, _out, err = vmm_msi("scenario", "init", *words)
    assert code == 2
    assert f"{words[0]} needs --from: the example has a host and a guest" in err


def test_an_existing_file_is_kept(vmm_msi, tmp_path):
    path = tmp_path / "scenario.toml"
    path.write_text("mine")
    code, _out, err = vmm_msi("scenario", "init", "-o", path)
    assert (code, path.read_text()) == (1, "mine")
    assert "--force" in err
    assert vmm_msi("scenario", "init", "-o", path, "--force")[0] == 0


TWO_ITS = samples.path("two-its.toml")


def test_minimise(vmm_msi, tmp_path):
    """The file begins with what it shows, and shows it."""
    path, picture = tmp_path / "smallest.toml", tmp_path / "path.svg"
    code, out, err = vmm_msi(
        "scenario", "minimise", TWO_ITS, "--strategy", "coerced:revision=v2", "-o", path,
        "--picture", picture,
    )  # fmt: skip
    assert (code, out) == (0, "")
    assert err.startswith("kept: 0000:02:00.0 refused; ran the strategy ")
    text = path.read_text()
    lines = [line for line in text.splitlines() if str(TWO_ITS) not in line]
    assert max(map(len, lines)) <= 80
    heading = [line.removeprefix("#").strip() for line in text.splitlines() if line[:1] == "#"]
    assert heading[:3] == [
        "The smallest scenario in which 0000:02:00.0 ends with",
        "coerced:revision=v2 as refused (ENOSPC), like in",
        f"{TWO_ITS}.",
    ]
    assert picture.read_text().startswith("<svg")
    words = ("--strategy", "coerced:revision=v2", "--trace", "0000:02:00.0")
    code, trace, _err = vmm_msi("compare", "--scenario", path, *words)
    assert code == 0
    assert " ".join(trace.split()) in " ".join(" ".join(heading).split())


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--strategy", "identitty"], 2, "did you mean identity?"),
        (["--strategy", "direct", "--device", "0000:09:00.0"], 2, "the guest has no such device"),
        (["--strategy", "direct", "--device", "x"], 3, "PCI address 'x'"),
        ([], 2, "--strategy"),
    ],
)
def test_minimise_refuses(vmm_msi, words, code, message):
    result, out, err = vmm_msi("scenario", "minimise", TWO_ITS, *words)
    assert (result, out) == (code, "")
    assert message in err
    assert err.count("\n") == 1


def test_minimise_keeps_an_existing_file(vmm_msi, tmp_path):
    path = tmp_path / "smallest.toml"
    path.write_text("mine")
    for option in ("-o", "--picture"):
        words = ("scenario", "minimise", TWO_ITS, "--strategy", "direct", option, path)
        assert vmm_msi(*words)[0] == 1
        assert path.read_text() == "mine"
