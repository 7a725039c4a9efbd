"""The code that the hook runs as root: everything that another user could change is reported."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from other_user import OTHER

from vmm_msi.qemuhook import entry, imported_code

SITE = "lib/python{}.{}/site-packages".format(*sys.version_info[:2])


@pytest.fixture(autouse=True)
def _owners(monkeypatch):
    monkeypatch.setattr(imported_code, "OWNERS", frozenset({0, os.geteuid()}))


@pytest.fixture
def environment(tmp_path):
    """An environment as venv creates it, with a copy of no package but a link to this one."""
    folder = tmp_path / "environment"
    (folder / SITE / "package/__pycache__").mkdir(parents=True)
    (folder / SITE / "package/module.py").touch()
    (folder / "bin").mkdir()
    (folder / "bin/python").symlink_to(Path(sys.executable).resolve())
    home = Path(sys.executable).resolve().parent
    (folder / "pyvenv.cfg").write_text(f"home = {home}\n")
    paths = {str(Path(entry.__file__).parents[2]), *filter(os.path.isdir, sys.path[1:])}
    (folder / SITE / "paths.pth").write_text(
        "".join(f"import site; site.addsitedir({path!r})\n" for path in sorted(paths))
    )
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere/linked.py").touch()
    (folder / SITE / "linked").symlink_to(folder / "elsewhere")
    (folder / SITE / "dangling").symlink_to("nowhere")
    return folder


@pytest.fixture
def imports(environment):
    """What the interpreter of the environment imports, without the folders of this one."""
    folders = (str(environment / SITE),)
    return imported_code.Imports("0", entry.__file__, str(environment), folders, (entry.__file__,))


def weak(environment, imports):
    script = environment.parent / "hooks/qemu.d/50-vmm-msi"
    weakness = imported_code.weakness(script, str(environment / "bin/python"), imports)
    return weakness and str(weakness)


def test_what_is_imported(environment):
    imports = imported_code.imports_of(str(environment / "bin/python"))
    assert imports is not None
    assert imports.entry == entry.__file__
    assert imports.prefix == str(environment)
    assert str(environment / SITE) in imports.folders
    assert entry.__file__ in imports.files
    assert any("/libc" in file for file in imports.files)


def test_an_interpreter_that_cannot_import_it(tmp_path):
    for program in ("/bin/true", "/bin/false", "/nowhere", str(tmp_path), ""):
        assert imported_code.imports_of(program) is None


PLACES = {
    "the folder of modules": (SITE, 0o777),
    "a sticky folder of modules": (SITE, 0o1777),
    "a folder above": ("", 0o777),
    "a package": (f"{SITE}/package", 0o777),
    "a module": (f"{SITE}/package/module.py", 0o666),
    "cached byte code": (f"{SITE}/package/__pycache__", 0o777),
    "a file that Python runs at its start": (f"{SITE}/paths.pth", 0o666),
    "the folder of the interpreter": ("bin", 0o777),
    "the settings of the environment": ("pyvenv.cfg", 0o666),
    "the target of a link": ("elsewhere", 0o777),
    "a file in the target of a link": ("elsewhere/linked.py", 0o666),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_place_that_every_user_may_write_to(environment, imports, place):
    name, mode = PLACES[place]
    assert weak(environment, imports) is None
    (environment / name).chmod(mode)
    assert weak(environment, imports) == f"{environment / name} is writable by every user"


@pytest.mark.parametrize("place", [*PLACES, "a link", "a dangling link", "the interpreter"])
def test_a_place_of_another_user(environment, imports, place, monkeypatch):
    more = {"a link": f"{SITE}/linked", "a dangling link": f"{SITE}/dangling"}
    name = more.get(place) or (
        "bin/python" if place == "the interpreter" else PLACES.get(place, ("",))[0]
    )
    path = environment / name
    if os.geteuid() == 0:
        os.chown(path, OTHER, OTHER, follow_symlinks=False)
        assert weak(environment, imports) == f"{path} belongs to user {OTHER}"
    else:
        monkeypatch.setattr(imported_code, "OWNERS", frozenset({0}))
        assert f"belongs to user {os.geteuid()}" in weak(environment, imports)


@pytest.mark.parametrize("kind", ["script", "folder", "missing folder"])
def test_the_script_and_its_folder(environment, imports, kind):
    """libvirt runs every executable in its folder of hooks."""
    hooks = environment.parent / "hooks"
    hooks.mkdir()
    path = hooks
    if kind != "missing folder":
        (hooks / "qemu.d").mkdir()
        path = hooks / "qemu.d"
    if kind == "script":
        path /= "50-vmm-msi"
        path.touch()
    assert weak(environment, imports) is None
    path.chmod(0o666 if kind == "script" else 0o1777)
    assert weak(environment, imports) == f"{path} is writable by every user"


def test_a_folder_that_another_user_may_create(environment, imports):
    """A link leads there, or sys.path names a zip file that does not exist."""
    (environment.parent / "shared").mkdir()
    (environment.parent / "shared").chmod(0o1777)
    reason = f"{environment.parent}/shared is writable by every user"
    (environment / SITE / "missing.py").symlink_to(environment.parent / "shared/missing.py")
    assert weak(environment, imports) == reason
    (environment / SITE / "missing.py").unlink()
    missing = str(environment.parent / "shared/python.zip")
    more = imported_code.Imports(
        imports.version, imports.entry, imports.prefix, (*imports.folders, missing), imports.files
    )
    assert weak(environment, more) == reason


def test_links_in_a_circle(environment, imports):
    (environment / SITE / "circle").symlink_to(environment / SITE)
    (environment / "elsewhere/up").symlink_to("..")
    with suppress(FileExistsError):
        (environment / SITE / "self").symlink_to("self")
    assert "Too many levels" in weak(environment, imports)
    (environment / SITE / "self").unlink()
    assert weak(environment, imports) is None
