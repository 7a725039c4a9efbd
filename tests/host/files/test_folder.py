"""A host in a folder that another user may change while it is read."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest
from other_user import attacker, shared_folder

from vmm_msi.host.files import UnreadableError
from vmm_msi.host.files.folder import FolderTree


@pytest.fixture
def victim(tmp_path):
    """A folder outside, with files of the names that the host has."""
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / "file").write_text("secret")
    (folder / "secret").touch()
    return folder


@pytest.mark.parametrize("name", ["file", "folder"])
def test_another_user_cannot_lead_a_read_out_of_the_folder(victim, name):
    """Another user exchanges a file, or the folder that it is in, and a link."""
    with shared_folder(0o777) as root:
        (root / "folder").mkdir()
        (root / "folder").chmod(0o777)
        (root / "folder/file").write_text("public")
        own = root / "folder" / ("file" if name == "file" else "")
        target = victim / ("file" if name == "file" else "")
        link = root / "link"
        link.symlink_to(target)

        def exchange():
            """The three renames leave the name missing for a moment only."""
            for first, second in ((own, root / "away"), (link, own), (own, link)):
                with contextlib.suppress(OSError):
                    first.rename(second)
            with contextlib.suppress(OSError):
                (root / "away").rename(own)

        contents, names = set(), set()
        with attacker(exchange):
            end = time.monotonic() + 2
            while time.monotonic() < end:
                tree = FolderTree(root)
                with contextlib.suppress(UnreadableError):
                    contents.add(tree.read("/folder/file"))
                with contextlib.suppress(UnreadableError):
                    contents.add(tree.read_part("/folder/file", 0, 6))
                with contextlib.suppress(UnreadableError):
                    names |= {*tree.names("/folder")}
    assert b"public" in contents
    assert contents <= {b"public", None}
    assert "secret" not in names


def test_the_path_of_the_folder_may_have_links(tmp_path, monkeypatch):
    (tmp_path / "real/sys").mkdir(parents=True)
    (tmp_path / "real/sys/x").write_text("x")
    (tmp_path / "real/y").symlink_to("/sys/../sys/x")
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    for root in (Path("link"), tmp_path / "link", Path("real"), Path("link/..", "link"), Path()):
        below = "" if root != Path() else "/real"
        opened = len([*Path("/proc/self/fd").iterdir()])
        tree = FolderTree(root)
        assert tree.read(f"{below}/sys/x") == b"x"
        assert tree.read_part(f"{below}/sys/x", 0, 1) == b"x"
        assert tree.names(f"{below}/sys") == ("x",)
        assert tree.read(f"{below}/missing") is None
        assert tree.names(f"{below}/sys/x") == ()
        if not below:
            assert tree.read("/y") == b"x"
        assert len([*Path("/proc/self/fd").iterdir()]) == opened
