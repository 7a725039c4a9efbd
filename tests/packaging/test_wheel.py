"""The package as users get it: a wheel in a clean environment, with third-party plugins."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from scenarios import A, B, Device, Sample, pair

ROOT = Path(__file__).parents[2]
OUTSIDE = Path(__file__).parent / "outside"


def pip(python, *arguments):
    command = [
        sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check",
        *arguments,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def copy(source, target, *ignored):
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*ignored))
    return target


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    hidden = (".venv", ".git", "tests", "*.egg-info", ".*_cache", "__pycache__")
    source = copy(ROOT, folder / "source", *hidden)
    shutil.rmtree(source / "build", ignore_errors=True)  # an earlier build of the whole project
    pip(sys.executable, "wheel", "--quiet", "--no-deps", "-w", str(folder), str(source))
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory):
    """The bin folder of a venv with the wheel and the outside distribution."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    outside = copy(OUTSIDE, folder / "outside", "__pycache__", "build", "*.egg-info")
    pip(python, "install", "--quiet", str(wheel), str(outside))
    return python.parent


def run(installed, *arguments, cwd):
    command = [str(installed / "vmm-msi"), *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=cwd, env={"HOME": str(cwd)}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_contains_data_files(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "vmm_msi/py.typed",
        "vmm_msi_plugins/py.typed",
        "vmm_msi/lab/build/init",
        "vmm_msi/lab/build/kernel.config",
        "vmm_msi/doctor/findings/smmu-no-s2fwb.md",
        "vmm_msi/templates/nested-guest.xml",
        "vmm_msi/samples/eight-its-server.dtb",
        "vmm_msi/samples/eight-its-server.dts",
        "vmm_msi/samples/three-devices.xml",
        "vmm_msi/samples/test-driver.xml",
        "vmm_msi/samples/two-its.toml",
        "vmm_msi/samples/kubevirt/onDefineDomain",
        "vmm_msi/samples/kubevirt/vmi.yaml",
        "vmm_msi/watch/vmm-msi-watch.service",
    } <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith("tests") for name in names)
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "vmm_msi").rglob("*.py")}
    assert modules <= names


def test_every_module_of_a_clean_install_imports(installed, tmp_path):
    script = (
        "import importlib, pkgutil, vmm_msi, vmm_msi_plugins\n"
        "for package in (vmm_msi, vmm_msi_plugins):\n"
        "    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        if not module.name.endswith('__main__'):\n"
        "            importlib.import_module(module.name)\n"
    )
    command = [str(installed / "python"), "-W", "error", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_clean_install_contains_the_findings_pages(installed, tmp_path):
    page = run(installed, "doctor", "--explain", "no-its", cwd=tmp_path)
    assert page == (ROOT / "vmm_msi/doctor/findings/no-its.md").read_text()


def test_plugins_of_both_distributions_are_listed(installed, tmp_path):
    listed = json.loads(run(installed, "plugins", "list", "--format", "json", cwd=tmp_path))
    origin = {plugin["name"]: plugin["origin"] for plugin in listed["plugins"]}
    assert origin["even-pages"] == origin["last-in-group"] == "outside-strategies 3.2.1"
    assert origin["direct"].startswith("vmm-msi ")
    assert {plugin["state"] for plugin in listed["plugins"]} == {"loaded"}


def compare(installed, tmp_path, sample, *arguments):
    (tmp_path / "scenario.toml").write_text(sample.toml())
    text = run(
        installed, "compare", "--scenario", "scenario.toml", "--format", "json", *arguments,
        cwd=tmp_path,
    )  # fmt: skip
    return json.loads(text)["results"]


def test_an_outside_strategy_is_compared_with_the_shipped_ones(installed, tmp_path):
    outside, shipped = compare(
        installed, tmp_path, pair("own", pits=2), "--strategy", "even-pages:greeting=hi",
        "--strategy", "direct",
    )  # fmt: skip
    assert outside["options"] == {"greeting": "hi", "profile": "series-v15"}
    assert {v["outcome"] for v in outside["verdicts"]} == {"delivered"}
    assert outside["costs"]["s2_domains"] == 2
    assert {v["outcome"] for v in shipped["verdicts"]} == {"delivered", "refused"}


def test_an_outside_its_selector_is_chosen_by_configuration(installed, tmp_path):
    (tmp_path / "vmm-msi.toml").write_text('its_selector = "last-in-group"\n')
    sample = Sample((Device(A, its_group=(0, 1)), Device(B, its_group=(0, 1))))
    (result,) = compare(installed, tmp_path, sample, "--strategy", "even-pages")
    assert {(v["outcome"], v["its"]) for v in result["verdicts"]} == {("misrouted", 1)}


def test_the_samples_work_from_the_installed_package(installed, tmp_path):
    script = "from vmm_msi import samples; print(samples.path('eight-its-server.dtb').parent)"
    command = [str(installed / "python"), "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    samples = Path(done.stdout.strip())
    assert installed.parent in samples.parents
    host, guest = samples / "eight-its-server.dtb", samples / "three-devices.xml"
    text = run(
        installed, "compare", "--host", host, "--guest", guest, "--strategy", "identity",
        cwd=tmp_path,
    )  # fmt: skip
    assert "3/3" in text
    node = f"test://{samples / 'test-driver.xml'}"
    text = run(
        installed, "attach", "guest0", "0000:01:00.0", "-c", node, "--host", host, cwd=tmp_path
    )
    assert "delivered" in text
