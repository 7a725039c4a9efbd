"""The emulated host's images: kernel, user land, and the layer with the package."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import os
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import json_schemas
import pytest
from conftest import unavailable
from signals import DEFAULT_SIGNALS
from waiting import wait_until

from vmm_msi.cli import main
from vmm_msi.errors import LabError, UsageError
from vmm_msi.lab.build import (
    host_tools,
    images,
    kernel_flavour,
    kernel_image,
    kernel_tree,
    package_layer,
    userland,
)
from vmm_msi.lab.build.cpio import Archive, concatenate
from vmm_msi.lab.build.progress import Progress
from vmm_msi.types import Granule

HERE = Path(__file__).parent


def members(archive):
    """Read an archive independently of the code that writes it: name -> (mode, content)."""
    contents, at = {}, 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        start = at + 110
        name = archive[start : start + fields[11] - 1].decode()
        content = -(-(start + fields[11]) // 4) * 4
        if name == "TRAILER!!!":
            return contents
        assert fields[2:4] == [0, 0], "owned by root"
        contents[name] = (fields[1], archive[content : content + fields[6]])
        at = -(-(content + fields[6]) // 4) * 4


def decompressed(path):
    return subprocess.run(["zstd", "-dqc", str(path)], capture_output=True, check=True).stdout


# Archives.


def test_archive_does_not_depend_on_the_order():
    one, two = Archive(), Archive()
    one.add_file("a/b/c", b"content", 0o755)
    one.add_link("a/link", "b/c")
    two.add_link("a/link", "b/c")
    two.add_file("a/b/c", b"content", 0o755)
    assert one.encode() == two.encode()
    contents = members(one.encode())
    assert list(contents) == ["a", "a/b", "a/b/c", "a/link"]
    assert contents["a/b/c"] == (stat.S_IFREG | 0o755, b"content")
    assert contents["a/link"] == (stat.S_IFLNK | 0o777, b"b/c")
    assert stat.S_ISDIR(contents["a/b"][0])


def test_joined_archives_start_at_multiples_of_four():
    assert concatenate([b"12345", b"6"]) == b"12345\0\0\0" + b"6\0\0\0"


# The kernel: its key in the cache, and what its build refuses.


def name_of(granule=Granule.K4, kernel="stock", suite="forky"):
    flavour = kernel_flavour.flavour(str(kernel))
    return kernel_image._place(suite, granule, Path("/cache"), flavour).path.name


def test_a_kernels_own_options_replace_those_of_the_stock_kernel():
    flavour = kernel_flavour.flavour("debug")
    lines = kernel_image._fragment(Granule.K64, flavour).splitlines()
    assert "CONFIG_KVM=y" not in lines
    assert {"# CONFIG_KVM is not set", "CONFIG_KASAN=y", "CONFIG_ARM64_64K_PAGES=y"} <= set(lines)
    assert "CONFIG_KVM=y" in kernel_image._fragment(Granule.K4, kernel_flavour.flavour("bind"))


def test_kernel_key_depends_on_suite_granule_patches_and_recipe(tmp_path, monkeypatch):
    names = [name_of(), name_of(Granule.K64), name_of(suite="sid")]
    patch = tmp_path / "1.patch"
    patch.write_text("one")
    names.append(name_of(kernel=tmp_path))
    patch.write_text("two")
    names.append(name_of(kernel=tmp_path))
    patch.rename(tmp_path / "2.patch")
    names.append(name_of(kernel=tmp_path))
    original = kernel_image.fragment
    monkeypatch.setattr(
        kernel_image, "fragment", lambda granule: original(granule) + "CONFIG_X=y\n"
    )
    names.append(name_of())
    monkeypatch.undo()
    monkeypatch.setattr(kernel_image, "VERSION", kernel_image.VERSION + 1)
    names.append(name_of())
    assert len(set(names)) == len(names)


def test_patches_are_sorted_by_name(tmp_path):
    for name in ("10-b.patch", "02-a.patch", "README"):
        (tmp_path / name).write_text(name)
    patches = kernel_flavour.flavour(str(tmp_path)).patches
    assert [patch.name for patch in patches] == ["02-a.patch", "10-b.patch"]


def test_kernel_has_a_name_or_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    assert [kernel_flavour.kernel_name(word) for word in ("stock", "bind", "mine", "./none")] == [
        *("stock", "bind", f"{tmp_path}/mine", f"{tmp_path}/none")
    ]
    with pytest.raises(UsageError, match=r"'bin' is not .*; did you mean bind\? use stock, bind"):
        kernel_flavour.kernel_name("bin")


@pytest.mark.parametrize("files", [(), ("README",)])
def test_folder_without_patches_is_refused(tmp_path, capsys, files):
    for name in files:
        (tmp_path / name).touch()
    assert main(["lab", "build", "--kernel", str(tmp_path), "--cache", str(tmp_path)]) == 2
    assert f"patches in {tmp_path}: there is no file *.patch" in capsys.readouterr().err


def test_unsupported_granule_is_refused():
    with pytest.raises(UsageError, match="granule 16K is not supported; use one of 4K, 64K"):
        name_of(Granule.K16)


@pytest.mark.parametrize("granule", kernel_image.GRANULES)
def test_fragment_names_one_page_size(granule):
    pages = re.findall(
        r"^CONFIG_ARM64_(\d+K)_PAGES=y$", kernel_image.fragment(granule), re.MULTILINE
    )
    assert pages == [str(granule)]


def test_fragment_has_every_option_once_with_a_reason():
    text = kernel_image.fragment(Granule.K4)
    options = [line for line in text.splitlines() if line.startswith("CONFIG_")]
    assert len(options) == len(set(options))
    for group in text.split("\n\n")[1:]:
        assert group.startswith(("#", "CONFIG_ARM64_4K")), f"no reason for {group}"


def test_lost_option_is_named():
    options = "# why\nCONFIG_A=y\nCONFIG_AB=y\n"
    assert kernel_image.lost_options(options, "CONFIG_AB=y\n# CONFIG_A is not set\n") == [
        "CONFIG_A=y"
    ]


def test_all_missing_tools_are_named_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(host_tools.ownership, "find_program", lambda *_: None)
    with pytest.raises(LabError) as caught:
        images.ensure_images(cache=tmp_path)
    line = str(caught.value).partition("; ")[2]
    for package in (
        "bc",
        "bison",
        "debootstrap",
        "flex",
        "gcc-aarch64-linux-gnu",
        "xz-utils",
        "zstd",
    ):
        assert package in line.split()
    assert line.startswith("apt-get install ")
    assert list(tmp_path.iterdir()) == []


# A build of a small stand-in for the kernel's source. Its make targets leave the same files.

MAKEFILE = """\
allnoconfig:
\tgrep -v -e LOST $(KCONFIG_ALLCONFIG) > $(O)/.config
\tmkdir -p $(O)/include/config $(O)/arch/arm64/boot
\techo 7.2.12-vmm-msi$(LOCALVERSION) > $(O)/include/config/kernel.release
Image: $(O)/text.o $(O)/other.o
\tprintf '%56s' > $(O)/arch/arm64/boot/Image
\tprintf '@MAGIC@' >> $(O)/arch/arm64/boot/Image
\tcat $^ >> $(O)/arch/arm64/boot/Image
$(O)/%.o: %
\t@echo "  CC      $*.o"
\tcat $< > $@.part && mv $@.part $@
\techo $*.o >> $(O)/compiled
\tsleep $(SLEEP)
"""

PATCH = """\
--- a/text
+++ b/text
@@ -1 +1 @@
-plain
+patched
"""


def package(folder, magic="ARM\\144", sleep=0):
    """Return a package like Debian's of the kernel's source."""
    tree = folder / "linux-source-7.2"
    tree.mkdir(parents=True)
    makefile = MAKEFILE.replace("@MAGIC@", magic).replace("$(SLEEP)", str(sleep))
    (tree / "Makefile").write_text(makefile)
    for name in ("text", "other"):
        (tree / name).write_text("plain\n")
    (folder / "deb/DEBIAN").mkdir(parents=True)
    (folder / "deb/usr/src").mkdir(parents=True)
    control = "Package: linux-source-7.2\nVersion: 7.2.12-1\nArchitecture: all\n"
    (folder / "deb/DEBIAN/control").write_text(
        f"{control}Maintainer: Tests <tests@example.org>\nDescription: a stand-in\n"
    )
    archive = folder / "deb/usr/src/linux-source-7.2.tar.xz"
    subprocess.run(["tar", "-cJf", archive, "-C", folder, tree.name], check=True)
    deb = folder / "package.deb"
    subprocess.run(
        ["dpkg-deb", "--build", "--root-owner-group", folder / "deb", deb],
        check=True,
        capture_output=True,
    )
    return deb.read_bytes()


def stand_in(deb, patch=None):
    """Replace the fetched source by the small one; ``patch`` undoes it."""
    fetched = []

    def fetch(tree, folder):
        fetched.append(tree)
        path = folder / "linux-source-7.2_7.2.12-1_all.deb"
        path.write_bytes(deb)
        return path

    (patch.setattr if patch else setattr)(kernel_tree.KernelTree, "_fetch", fetch)
    return fetched


@pytest.fixture
def host(monkeypatch):
    """Require only the tools of the small build, which calls no cross-compiler."""
    tools = ["dpkg", "make", "patch", "setpriv", "tar", "unshare", "xz"]
    monkeypatch.setattr(kernel_image, "TOOLS", tools)
    try:
        host_tools.require_tools(tools)
    except LabError as error:
        unavailable(str(error))


def test_kernel_is_built_once(tmp_path, host, monkeypatch):
    cache = tmp_path / "cache"
    fetched = stand_in(package(tmp_path / "package"), monkeypatch)
    assert kernel_image.find_kernel("forky", cache=cache) is None
    built = kernel_image.ensure_kernel("forky", cache=cache)
    assert (built.cached, built.release, built.granule) == (False, "7.2.12", Granule.K4)
    assert built.path.read_bytes()[56:] == b"ARM\x64plain\nplain\n"
    assert kernel_image.ensure_kernel("forky", cache=cache).cached
    assert kernel_image.find_kernel("forky", cache=cache) == kernel_image.ensure_kernel(
        "forky", cache=cache
    )
    assert len(fetched) == 1
    assert sorted(path.name for path in built.path.parent.iterdir()) == [
        "Image",
        "config",
        "kernel.json",
    ]
    assert sorted(path.name for path in cache.iterdir()) == [
        *(built.path.parent.name, f"{built.path.parent.name}.lock"),
        *("kerneltree-forky", "kerneltree-forky.lock"),
    ]
    tree = kernel_tree.tree_facts("forky", cache)
    assert tree.path == cache / "kerneltree-forky"
    used = subprocess.run(["du", "-s", "-B1", tree.path], capture_output=True, check=True)
    assert tree.size == pytest.approx(int(used.stdout.split()[0]), abs=20_000)


def compiled(cache):
    """Return the objects compiled since the last call."""
    log = cache / "kerneltree-forky/objects-4k/compiled"
    names = log.read_text().split() if log.exists() else []
    log.unlink(missing_ok=True)
    return sorted(names)


def test_only_what_a_patch_changes_is_compiled_again(tmp_path, host, monkeypatch):
    fetched = stand_in(package(tmp_path / "package"), monkeypatch)
    cache, patches = tmp_path / "cache", tmp_path / "patches"
    patches.mkdir()
    (patches / "text.patch").write_text(PATCH)

    def build(kernel):
        built = kernel_image.ensure_kernel("forky", cache=cache, kernel=str(kernel))
        release = cache / "kerneltree-forky/objects-4k/include/config/kernel.release"
        return built.path.read_bytes()[60:], release.read_text().strip(), compiled(cache)

    assert build("stock") == (b"plain\nplain\n", "7.2.12-vmm-msi", ["other.o", "text.o"])
    assert build(patches) == (b"patched\nplain\n", "7.2.12-vmm-msi-patched", ["text.o"])
    (patches / "text.patch").write_text(PATCH.replace("+patched", "+again"))
    assert build(patches)[::2] == (b"again\nplain\n", ["text.o"])
    (patches / "text.patch").rename(patches / "renamed.patch")
    assert build(patches)[::2] == (b"again\nplain\n", [])
    # Back to the original.
    [folder] = cache.glob("kernel-forky-4k-????????????")
    shutil.rmtree(folder)
    assert build("stock") == (b"plain\nplain\n", "7.2.12-vmm-msi", ["text.o"])
    assert len(fetched) == 1
    # Without its tree a kernel is compiled from scratch.
    shutil.rmtree(cache / "kerneltree-forky")
    (patches / "renamed.patch").write_text(PATCH)
    assert build(patches)[::2] == (b"patched\nplain\n", ["other.o", "text.o"])
    assert len(fetched) == 2


def test_old_kernels_of_a_series_are_removed(tmp_path, host, monkeypatch):
    stand_in(package(tmp_path / "package"), monkeypatch)
    cache, patches = tmp_path / "cache", tmp_path / "patches"
    patches.mkdir()
    stock = kernel_image.ensure_kernel("forky", cache=cache)
    kernels = []
    for number in range(6):
        (patches / "text.patch").write_text(PATCH.replace("+patched", f"+{number}"))
        built = kernel_image.ensure_kernel("forky", cache=cache, kernel=str(patches))
        kernels.append(built.path.parent)
        for file in built.path.parent.iterdir():
            os.utime(file, (number, number))
    assert [folder.exists() for folder in kernels] == [False, False, True, True, True, True]
    assert stock.path.exists()


def test_patch_that_does_not_apply_is_refused(tmp_path, host, monkeypatch):
    stand_in(package(tmp_path / "package"), monkeypatch)
    cache, patches = tmp_path / "cache", tmp_path / "patches"
    patches.mkdir()
    (patches / "text.patch").write_text(PATCH)
    (patches / "wrong.patch").write_text(PATCH.replace("plain", "something else"))
    with pytest.raises(LabError, match=r"applying wrong\.patch to linux-source.*: 1 out of 1 hunk"):
        kernel_image.ensure_kernel("forky", cache=cache, kernel=str(patches))
    assert kernel_image.find_kernel("forky", cache=cache, kernel=str(patches)) is None
    assert (cache / "kerneltree-forky/source/text").read_text() == "plain\n"


@pytest.mark.parametrize("damage", ["edited", "removed", "original", "record", "marker", "list"])
def test_damaged_source_is_unpacked_again(tmp_path, host, monkeypatch, damage):
    fetched = stand_in(package(tmp_path / "package"), monkeypatch)
    cache, patches = tmp_path / "cache", tmp_path / "patches"
    patches.mkdir()
    (patches / "text.patch").write_text(PATCH)
    kernel_image.ensure_kernel("forky", cache=cache, kernel=str(patches))
    tree = cache / "kerneltree-forky"
    match damage:
        case "edited":
            (tree / "source/other").write_text("edited\n")
        case "removed":
            (tree / "source/other").unlink()
        case "original":
            (tree / "originals/text").write_text("edited\n")
        case "record":
            (tree / "originals.json").write_text("{")
        case "marker":
            (tree / "tree.json").unlink()
        case "list":
            (tree / "files").write_text("[")
    built = kernel_image.ensure_kernel("forky", cache=cache)
    assert built.path.read_bytes()[60:] == b"plain\nplain\n"
    assert len(fetched) == 2


def test_trees_of_other_suites_are_removed_unless_in_use(tmp_path, host, monkeypatch):
    stand_in(package(tmp_path / "package"), monkeypatch)
    cache = tmp_path / "cache"
    for suite in ("sid", "trixie"):
        (cache / f"kerneltree-{suite}/source").mkdir(parents=True)
    with host_tools.open_lock(cache / "kerneltree-sid.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kernel_image.ensure_kernel("forky", cache=cache)
    trees = sorted(path.name for path in cache.glob("kerneltree-*") if path.is_dir())
    assert trees == ["kerneltree-forky", "kerneltree-sid"]


def test_object_of_a_killed_compiler_is_compiled_again(tmp_path, monkeypatch):
    """make would take it for complete: kbuild writes the .cmd file after the object."""
    objects = kernel_tree.Objects(tmp_path / "objects")
    assert not objects.begin(), "nothing was compiled"
    for name, object_time, command_time in (("whole", 1, 2), ("half", 3, 2), ("same", 2, 2)):
        for file, seconds in ((f"{name}.o", object_time), (f".{name}.o.cmd", command_time)):
            (objects.folder / file).touch()
            os.utime(objects.folder / file, (seconds, seconds))
    assert objects.begin(), "the build did not end"
    assert sorted(path.name for path in objects.folder.glob("*.o")) == ["same.o", "whole.o"]
    objects.end()
    assert not objects.begin()
    objects.end()
    monkeypatch.setattr(kernel_tree, "_boot", lambda: "the next boot")
    assert objects.begin(), "a power cut truncates files"


def test_option_lost_by_kconfig_is_refused(tmp_path, host, monkeypatch):
    stand_in(package(tmp_path / "package"), monkeypatch)
    original = kernel_image.fragment
    monkeypatch.setattr(
        kernel_image, "fragment", lambda granule: original(granule) + "CONFIG_LOST=y\n"
    )
    with pytest.raises(LabError, match=r"configuring .*: CONFIG_LOST=y got lost"):
        kernel_image.ensure_kernel("forky", cache=tmp_path / "cache")


def test_image_without_magic_is_refused(tmp_path, host, monkeypatch):
    stand_in(package(tmp_path / "package", magic="junk"), monkeypatch)
    with pytest.raises(LabError, match="an image without arm64's magic number"):
        kernel_image.ensure_kernel("forky", cache=tmp_path / "cache")
    assert kernel_image.find_kernel("forky", cache=tmp_path / "cache") is None


def test_too_little_space_is_refused_in_advance(tmp_path, host, monkeypatch):
    monkeypatch.setattr(kernel_image, "_SPACE", 10**18)
    with pytest.raises(LabError, match=r"building the lab's kernel: .* GB free, .* GB required"):
        kernel_image.ensure_kernel("forky", cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


KILLED = """
import sys
from pathlib import Path
from vmm_msi.lab.build import kernel_image
from test_images import stand_in
kernel_image.TOOLS = ()
stand_in(Path(sys.argv[1]).read_bytes())
kernel_image.ensure_kernel("forky", cache=Path(sys.argv[2]), kernel=sys.argv[3])
"""


def start_build(deb, cache, kernel="stock"):
    """Start a build in a process that can be killed."""
    return subprocess.Popen(
        [*DEFAULT_SIGNALS, sys.executable, "-c", KILLED, str(deb), str(cache), str(kernel)],
        env={**os.environ, "PYTHONPATH": f"{HERE.parent}:{HERE}"},
        stderr=subprocess.DEVNULL,
    )


def test_builds_killed_at_any_time_converge(tmp_path, host, monkeypatch):
    """Each round kills a build of another series later than the round before."""
    deb, cache, patches = tmp_path / "some.deb", tmp_path / "cache", tmp_path / "patches"
    deb.write_bytes(package(tmp_path / "package"))
    stand_in(deb.read_bytes(), monkeypatch)
    patches.mkdir()
    for number in range(12):
        (patches / "text.patch").write_text(PATCH.replace("+patched", f"+{number}"))
        with start_build(deb, cache, patches) as process:
            while process.poll() is None and not [*cache.glob("*.building")]:
                time.sleep(0.001)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(number / 15)
            process.kill()
        if number % 4 == 3:
            built = kernel_image.ensure_kernel("forky", cache=cache, kernel=str(patches))
            assert built.path.read_bytes()[60:] == f"{number}\nplain\n".encode()
    built = kernel_image.ensure_kernel("forky", cache=cache)
    assert built.path.read_bytes()[60:] == b"plain\nplain\n"
    assert not [*cache.glob("kernel-*.building")]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_interrupted_compilation_is_resumed(tmp_path, host, monkeypatch, number):
    deb, cache = tmp_path / "slow.deb", tmp_path / "cache"
    deb.write_bytes(package(tmp_path / "package", sleep=61))
    with start_build(deb, cache) as process:
        log = cache / "kerneltree-forky/objects-4k/compiled"
        assert wait_until(lambda: log.exists() and log.read_text().count("\n") == 2)
        process.send_signal(number)
    assert wait_until(lambda: not sleeping(61)), "its children end with it"
    assert kernel_image.find_kernel("forky", cache=cache) is None
    fetched = stand_in(b"not needed again", monkeypatch)
    assert compiled(cache) == ["other.o", "text.o"]
    built = kernel_image.ensure_kernel("forky", cache=cache)
    assert compiled(cache) == [], "the compiled objects are reused"
    assert not fetched
    assert built.path.read_bytes().endswith(b"plain\n")
    assert [path.name for path in cache.glob("kernel-*") if path.is_dir()] == [
        built.path.parent.name
    ]


def test_objects_of_an_interrupted_build_are_removed_if_make_fails(tmp_path, host, monkeypatch):
    """A power cut leaves truncated files that make takes for complete."""
    cache = tmp_path / "cache"
    stand_in(package(tmp_path / "package"), monkeypatch)
    kernel_image.ensure_kernel("forky", cache=cache)
    compiled(cache)
    [folder] = cache.glob("kernel-forky-4k-????????????")
    shutil.rmtree(folder)
    objects = cache / "kerneltree-forky/objects-4k"
    image = objects / "arch/arm64/boot/Image"
    # A folder in place of the image, so that make fails with the objects of the last build.
    image.unlink()
    image.mkdir()
    with pytest.raises(LabError, match="building the lab's kernel"):
        kernel_image.ensure_kernel("forky", cache=cache)
    (objects / "ended-in-boot").unlink()
    built = kernel_image.ensure_kernel("forky", cache=cache)
    assert built.path.read_bytes().endswith(b"plain\n")
    assert compiled(cache) == ["other.o", "text.o"]


def sleeping(seconds):
    """Return whether a process runs ``sleep seconds``."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if entry.read_bytes() == f"sleep\0{seconds}\0".encode():
                return True
        except OSError:
            continue
    return False


def test_progress_is_printed_at_intervals(capsys, monkeypatch):
    progress = Progress(sys.stderr, "lab")
    progress.stage("compiling")
    progress.count(900, 1800, "CC x.o")
    monkeypatch.setattr("vmm_msi.lab.build.progress._REPORT_S", 0.0)
    progress.count(900, 1800, "CC x.o")
    progress.count(2000, 1800, "CC y.o")
    lines = [line.rpartition("] ")[2] for line in capsys.readouterr().err.splitlines()]
    assert lines == ["compiling", "50%", "99%"]


# The layer with the package.


@pytest.fixture
def layer(lab_root, tmp_path):
    return package_layer.package_layer(lab_root, tmp_path)


@pytest.mark.lab_root
def test_layer_has_the_package_its_plugins_and_init(layer, lab_root):
    contents = members(decompressed(layer))
    mode, init = contents["init"]
    assert stat.S_IMODE(mode) == 0o755
    assert init.startswith(b"#!/usr/bin/busybox sh\n")
    inside = "usr/lib/python3/dist-packages"
    for name in (
        "vmm_msi/plugins/__init__.py",
        "vmm_msi_plugins/identity.py",
        "vmm_msi/templates/__init__.py",
    ):
        assert f"{inside}/{name}" in contents
    assert any(name.endswith(".xml") for name in contents)
    version = importlib.metadata.version("vmm-msi")
    _, points = contents[f"{inside}/vmm_msi-{version}.dist-info/entry_points.txt"]
    assert b"identity = vmm_msi_plugins.identity" in points


@pytest.mark.lab_root
def test_layer_does_not_depend_on_how_python_was_started(layer, lab_root, tmp_path):
    """An egg-info that setuptools leaves beside the source would be found first from there."""
    (tmp_path / "vmm_msi.egg-info").mkdir()
    (tmp_path / "vmm_msi.egg-info/PKG-INFO").write_text("Name: vmm-msi\nVersion: 0.0.1\n")
    program = (
        "import sys; from pathlib import Path\n"
        "from vmm_msi.lab.build.package_layer import package_layer\n"
        "from vmm_msi.lab.build.root import ensure_root\n"
        "print(package_layer(ensure_root(), Path(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert Path(done.stdout.strip()) == layer


@pytest.mark.lab_root
def test_layer_is_compiled_for_the_roots_python(layer, lab_root):
    program = "import importlib.util, sys; sys.stdout.buffer.write(importlib.util.MAGIC_NUMBER)"
    python = next((lab_root.path / "usr/bin").glob("python3.*"))
    magic = subprocess.run(
        [*lab_root.outside(f"usr/bin/{python.name}"), "-S", "-c", program],
        env={"PYTHONHOME": f"{lab_root.path}/usr"},
        capture_output=True,
        check=True,
    ).stdout
    contents = members(decompressed(layer))
    sources = {name for name in contents if name.endswith(".py")}
    assert len(sources) > 50
    for name in sources:
        folder, _, stem = name.removesuffix(".py").rpartition("/")
        tag = python.name.replace("python3.", "cpython-3")
        _, code = contents[f"{folder}/__pycache__/{stem}.{tag}.pyc"]
        # PEP 552: hash-based, with an unchecked hash.
        assert (code[:4], code[4:8]) == (magic, b"\1\0\0\0")


@pytest.mark.lab_root
def test_layer_name_depends_on_its_content(layer, lab_root, tmp_path, monkeypatch):
    content = layer.read_bytes()
    layer.unlink()
    start = time.monotonic()
    assert package_layer.package_layer(lab_root, tmp_path) == layer
    assert time.monotonic() - start < 10
    assert layer.read_bytes() == content
    files = dict(package_layer._files())
    name = "vmm_msi/lab/build/init"
    monkeypatch.setattr(
        package_layer, "_files", lambda: {**files, name: files[name] + b"# more\n"}.items()
    )
    assert package_layer.package_layer(lab_root, tmp_path) != layer


@pytest.mark.lab_root
def test_old_layers_are_removed(lab_root, tmp_path):
    for number in range(9):
        old = tmp_path / f"layer-{number}.cpio.zst"
        old.touch()
        os.utime(old, (number, number))
    new = package_layer.package_layer(lab_root, tmp_path)
    left = sorted(path.name for path in tmp_path.glob("layer-*"))
    assert left == sorted([new.name, *(f"layer-{number}.cpio.zst" for number in (6, 7, 8))])


# The images themselves.


@pytest.mark.lab_root
def test_cached_images_are_used_within_two_seconds(lab_images, lab_root, capsys):
    start = time.monotonic()
    assert main(["lab", "build", "--format", "json"]) == 0
    assert time.monotonic() - start < 2
    facts = json.loads(capsys.readouterr().out)
    json_schemas.check("lab-build", facts)
    assert facts["cached"]
    assert facts["kernel"] == str(lab_images.kernel)
    assert facts["kernel_bytes"] == lab_images.kernel.stat().st_size
    assert main(["lab", "build"]) == 0
    assert f"{facts['release']}\n" in capsys.readouterr().out


def test_user_land_has_every_command_of_the_console(lab_images):
    contents = members(decompressed(lab_images.initrd))
    _, busybox = contents["usr/bin/busybox"]
    assert [name for name in userland._APPLETS if f"\0{name}\0".encode() not in busybox] == []
    assert stat.S_ISLNK(contents["lib"][0])
    assert not any(name.endswith(".py") for name in contents)


PROBE = """#!/usr/bin/busybox sh
PATH=/usr/bin
mount -t proc proc /proc
python3 -I -c 'import ctypes, json, mmap, msgspec, pluggy, lxml.etree, libvirt
from vmm_msi import plugins
from importlib.metadata import entry_points
import mmap
names = sorted(point.name for point in entry_points(group="vmm_msi"))
print("probe:", mmap.PAGESIZE, plugins.__file__.endswith(".py"), *names)'
poweroff -f
"""


@pytest.mark.lab_root
@pytest.mark.timeout(240)
def test_images_boot_and_python_works(lab_images, lab_root, tmp_path):
    override = Archive()
    override.add_file("probe", PROBE.encode(), 0o755)
    layer_bytes = package_layer.package_layer(lab_root).read_bytes()
    initrd = tmp_path / "initrd"
    initrd.write_bytes(
        concatenate([override.encode(), lab_images.initrd.read_bytes(), layer_bytes])
    )
    share = lab_root.path / "usr/share"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [
            *(*lab_root.outside("usr/bin/qemu-system-aarch64"), "-L", f"{share}/qemu"),
            *("-bios", f"{share}/qemu-efi-aarch64/QEMU_EFI.fd"),
            *("-M", "virt,gic-version=3,its=on,iommu=smmuv3", "-cpu", "max", "-m", "1024"),
            *("-nographic", "-nodefaults", "-serial", "stdio", "-no-reboot"),
            *("-kernel", f"{lab_images.kernel}", "-initrd", f"{initrd}"),
            *("-append", "console=ttyAMA0 rdinit=/probe panic=-1"),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=220,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Processor time: other work on the machine must not fail the boot.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 30
    probe = re.search(r"probe: (\d+) True (.*)", done.stdout)
    assert probe is not None, done.stdout[-3000:] + done.stderr
    assert int(probe[1]) == lab_images.granule
    assert "identity" in probe[2].split()
    assert f"Linux version {lab_images.release}-vmm-msi" in done.stdout
    assert done.returncode == 0
