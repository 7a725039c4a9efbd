"""The package as users install it: a wheel in a clean environment, with third-party plugins."""

from __future__ import annotations

import importlib.metadata
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
    return build(source, folder)


def build(source, folder):
    """Build a wheel with the setuptools that runs here."""
    words = ["wheel", "--quiet", "--no-build-isolation", "--no-deps", "-w", folder, source]
    pip(sys.executable, *map(str, words))
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def install(tmp_path_factory):
    """Return a function that installs into a new venv and returns the venv's bin folder.

    The dependencies are of the releases that are installed here.
    """
    constraints = tmp_path_factory.mktemp("constraints") / "constraints.txt"
    constraints.write_text(
        "".join(
            f"{distribution.name}=={distribution.version}\n"
            for distribution in importlib.metadata.distributions()
            if distribution.name != "vmm-msi"
        )
    )

    def install_into_venv(*words):
        folder = tmp_path_factory.mktemp("clean") / "venv"
        venv.create(folder, with_pip=False)
        python = folder / "bin" / "python"
        pip(python, "install", "--quiet", "--constraint", str(constraints), *map(str, words))
        return python.parent

    return install_into_venv


@pytest.fixture(scope="session")
def installed(wheel, install, tmp_path_factory):
    """Without the extra: no libvirt-python, and no compiler; with the outside distribution."""
    folder = tmp_path_factory.mktemp("outside")
    outside = copy(OUTSIDE, folder / "source", "__pycache__", "build", "*.egg-info")
    return install("--only-binary", ":all:", wheel, build(outside, folder))


@pytest.fixture(scope="session")
def with_libvirt(wheel, install):
    return install(f"vmm-msi[libvirt,testing] @ {wheel.as_uri()}")


def run(installed, *arguments, cwd, code=0, given=""):
    command = [str(installed / "vmm-msi"), *map(str, arguments)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={"HOME": str(cwd)},
        input=given,
    )
    assert done.returncode == code, done.stderr
    return done.stderr if code else done.stdout


def test_wheel_contains_data_files(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "vmm_msi/py.typed",
        "vmm_msi_plugins/py.typed",
        "vmm_msi/lab/build/init",
        "vmm_msi/lab/build/kernel.config",
        "vmm_msi/lab/build/kernel-debug.config",
        "vmm_msi/lab/kernel/COPYING-GPL-2.0",
        "vmm_msi/lab/kernel/README.md",
        "vmm_msi/lab/qemu/COPYING-GPL-2.0",
        "vmm_msi/lab/qemu/devices.mak",
        "vmm_msi/lab/qemu/its-count.patch",
        "vmm_msi/doctor/findings/smmu-no-s2fwb.md",
        "vmm_msi/templates/nested-guest.xml",
        "vmm_msi/testing/template/pyproject.toml.template",
        "vmm_msi/testing/template/py.typed.template",
        "vmm_msi/samples/eight-its-server.dtb",
        "vmm_msi/samples/eight-its-server.dts",
        "vmm_msi/samples/three-devices.xml",
        "vmm_msi/samples/test-driver.xml",
        "vmm_msi/samples/two-its.toml",
        "vmm_msi/samples/kubevirt/onDefineDomain",
        "vmm_msi/samples/kubevirt/vmi.yaml",
        "vmm_msi/watch/vmm-msi-watch.service",
    } <= names
    patches = {path.relative_to(ROOT).as_posix() for path in (ROOT / "vmm_msi").rglob("*.patch")}
    assert patches <= names
    for text in ("LICENSE", "vmm_msi/lab/kernel/COPYING-GPL-2.0"):
        assert any(name.endswith(f"licenses/{text}") for name in names)
    assert not any(name.startswith("tests") for name in names)
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "vmm_msi").rglob("*.py")}
    assert modules <= names


def test_every_module_of_a_clean_install_imports(with_libvirt, tmp_path):
    script = (
        "import importlib, pkgutil, vmm_msi, vmm_msi_plugins\n"
        "for package in (vmm_msi, vmm_msi_plugins):\n"
        "    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        if not module.name.endswith('__main__'):\n"
        "            importlib.import_module(module.name)\n"
    )
    command = [str(with_libvirt / "python"), "-W", "error", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_clean_install_contains_the_findings_pages(installed, tmp_path):
    page = run(installed, "doctor", "--explain", "no-its", cwd=tmp_path)
    assert page == (ROOT / "vmm_msi/doctor/findings/no-its.md").read_text()


def test_plugins_of_both_distributions_are_listed(installed, tmp_path):
    document = json.loads(run(installed, "plugins", "list", "--format", "json", cwd=tmp_path))
    origin = {plugin["name"]: plugin["origin"] for plugin in document["plugins"]}
    assert origin["even-pages"] == origin["last-in-group"] == "outside-strategies 3.2.1"
    assert origin["direct"].startswith("vmm-msi ")
    assert {plugin["state"] for plugin in document["plugins"]} == {"loaded"}


def compare(installed, tmp_path, sample, *arguments):
    (tmp_path / "scenario.toml").write_text(sample.toml())
    text = run(
        installed, "compare", "--scenario", "scenario.toml", "--format", "json", *arguments,
        cwd=tmp_path,
    )  # fmt: skip
    return json.loads(text)["results"]


def test_third_party_strategy_is_compared_with_shipped_ones(installed, tmp_path):
    outside, shipped = compare(
        installed, tmp_path, pair("own", pits=2), "--strategy", "even-pages:greeting=hi",
        "--strategy", "direct",
    )  # fmt: skip
    assert outside["options"] == {"greeting": "hi", "profile": "series-v16"}
    assert {v["outcome"] for v in outside["verdicts"]} == {"delivered"}
    assert outside["costs"]["s2_domains"] == 2
    assert {v["outcome"] for v in shipped["verdicts"]} == {"delivered", "refused"}


def test_third_party_its_selector_is_selected_by_configuration(installed, tmp_path):
    (tmp_path / "vmm-msi.toml").write_text('its_selector = "last-in-group"\n')
    sample = Sample((Device(A, its_group=(0, 1)), Device(B, its_group=(0, 1))))
    (result,) = compare(installed, tmp_path, sample, "--strategy", "even-pages")
    assert {(v["outcome"], v["its"]) for v in result["verdicts"]} == {("misrouted", 1)}


def samples_of(installed, cwd):
    script = "from vmm_msi import samples; print(samples.path('eight-its-server.dtb').parent)"
    command = [str(installed / "python"), "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=cwd)
    samples = Path(done.stdout.strip())
    assert installed.parent in samples.parents
    return samples


def test_without_libvirt_python(installed, tmp_path):
    """Commands that need no libvirt work; the others say in one line what to install."""
    assert not [*installed.parent.glob("lib/*/site-packages/libvirt*")]
    samples = samples_of(installed, tmp_path)
    host, guest = samples / "eight-its-server.dtb", samples / "three-devices.xml"
    compared = run(
        installed, "compare", "--host", host, "--guest", guest, "--strategy", "identity",
        cwd=tmp_path,
    )  # fmt: skip
    assert "3/3" in compared
    run(installed, "doctor", host, cwd=tmp_path, code=9)  # the kernel is unknown
    shown = json.loads(run(installed, "topology", "show", host, "--format", "json", cwd=tmp_path))
    assert len(shown["itses"]) == 8
    fault = "vfio 0000:01:00.0: Failed to set vIOMMU: IOMMU_VDEVICE_ALLOC failed: Invalid argument"
    assert "qemu-vdevice" in run(
        installed, "explain", "--host", host, cwd=tmp_path, given=f"qemu-system-aarch64: {fault}"
    )
    assert "delivered" in run(
        installed, "replay", ROOT / "tests" / "recording" / "two-nvmes.json", cwd=tmp_path
    )
    rendered = run(
        installed, "render", "--host", host, "--device", "0000:01:00.0", "--take-over",
        cwd=tmp_path, given=guest.read_text(),
    )  # fmt: skip
    assert "<iommu model='smmuv3'>" in rendered
    node = f"test://{samples / 'test-driver.xml'}"
    for words in (
        ["attach", "guest0", "0000:01:00.0", "-c", node, "--host", host],
        ["status", "guest0", "-c", node],
        ["doctor", host, "--domain", "guest0", "-c", node],
    ):
        error = run(installed, *words, cwd=tmp_path, code=2)
        assert error.startswith(f"vmm-msi {words[0]}: importing libvirt-python: ")
        assert error.endswith(
            "; install it with pip install 'vmm-msi[libvirt]' or apt install python3-libvirt\n"
        )
        assert error.count("\n") == 1


def test_samples_work_in_the_installed_package(with_libvirt, tmp_path):
    samples = samples_of(with_libvirt, tmp_path)
    node = f"test://{samples / 'test-driver.xml'}"
    text = run(
        with_libvirt, "attach", "guest0", "0000:01:00.0", "-c", node,
        "--host", samples / "eight-its-server.dtb", cwd=tmp_path,
    )  # fmt: skip
    assert "delivered" in text


NEW = "two-pools"
#: Plugins of other kinds, in a module beside the new strategy.
MORE = {"site": "Site", "site-host": "SiteHost", "names": "Names"}


@pytest.fixture(scope="session")
def new_plugin(installed, wheel, install, tmp_path_factory):
    """The folder of a distribution that ``plugins new`` wrote, and a venv with it.

    It has a doctor rule, a host reader and a report format besides the strategy.
    """
    folder = tmp_path_factory.mktemp("new")
    source = folder / "source"
    run(installed, "plugins", "new", NEW, "-o", source, cwd=folder)
    package = source / "src" / "vmm_msi_two_pools"
    shutil.copy(ROOT / "tests" / "plugins" / "outside_plugins.py", package / "site.py")
    project = source / "pyproject.toml"
    head = "[project.entry-points.vmm_msi]\n"
    points = "".join(f'{name} = "{package.name}.site:{kind}"\n' for name, kind in MORE.items())
    project.write_text(project.read_text().replace(head, head + points))
    built = build(copy(source, folder / "built"), folder)
    words = ["--only-binary", ":all:", f"vmm-msi[testing] @ {wheel.as_uri()}", built]
    return source, install(*words)


def run_pytest(venv_bin, *arguments, cwd):
    command = [str(venv_bin / "python"), "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=cwd, env={"HOME": str(cwd)}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_tests_of_a_new_plugin_pass(new_plugin):
    source, venv_bin = new_plugin
    assert "3 passed" in run_pytest(venv_bin, cwd=source)


def test_a_new_plugin_passes_the_conformance_suite(new_plugin, tmp_path):
    _source, venv_bin = new_plugin
    suite = ["--pyargs", "vmm_msi.testing", "--vmm-msi-strategy", f"{NEW}:itses=2"]
    output = run_pytest(venv_bin, *suite, cwd=tmp_path)
    assert " passed" in output
    assert "skipped" not in output


def test_a_new_plugin_and_those_beside_it_pass_the_check(new_plugin, tmp_path):
    _source, venv_bin = new_plugin
    for name in (NEW, *MORE, "vmm_msi_two_pools"):
        assert "no problem" in run(venv_bin, "plugins", "check", name, cwd=tmp_path)


def test_a_new_plugin_is_compared_with_shipped_ones(new_plugin, tmp_path):
    _source, venv_bin = new_plugin
    sample = pair("own", pits=2, vits=2)
    strategies = ["--strategy", NEW, "--strategy", f"{NEW}:itses=2", "--strategy", "direct"]
    one, two, shipped = compare(venv_bin, tmp_path, sample, *strategies)
    assert {v["outcome"] for v in one["verdicts"]} == {"refused"}
    assert {v["outcome"] for v in two["verdicts"]} == {"delivered"}
    assert two["costs"] == shipped["costs"]
    words = ["compare", "--scenario", "scenario.toml", *strategies, "--format", "names"]
    assert run(venv_bin, *words, cwd=tmp_path) == f"{NEW}\n{NEW}\ndirect\n"


def test_doctor_rule_and_host_reader_of_a_new_plugin(new_plugin, tmp_path):
    _source, venv_bin = new_plugin
    (tmp_path / "inventory").write_text("SITE-HOST 1\n200000000\n210000000\n")
    words = ["topology", "show", "inventory", "--format", "json"]
    assert len(json.loads(run(venv_bin, *words, cwd=tmp_path))["itses"]) == 2
    run(venv_bin, "doctor", "inventory", cwd=tmp_path, code=8)
    page = run(venv_bin, "doctor", "--explain", "site-two-its", cwd=tmp_path)
    assert page.startswith("# site-two-its: Two ITSes\n")
    words = ["compare", "--host", "inventory", "--device", A, "--strategy", NEW]
    error = run(venv_bin, *words, cwd=tmp_path, code=5)
    assert "site-two-its (host): We do not run hosts with several ITSes." in error
    assert run(venv_bin, *words, "--disable-plugin", "site", cwd=tmp_path)
