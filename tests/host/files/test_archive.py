"""Captures are read in memory, byte for byte as they were packed, within limits."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import NamedTuple

import pytest
import zstandard
from host.files.tarballs import header, member, packed, pax
from hypothesis import given
from hypothesis import strategies as st

from vmm_msi.errors import TopologyError
from vmm_msi.host.files import MAX_FILE, UnreadableError
from vmm_msi.host.files.archive import MAX_COMPRESSED, MAX_TOTAL, open_archive, read_archive
from vmm_msi.host.files.folder import FolderTree
from vmm_msi.host.files.pack import pack

MIB = 1 << 20
A = member(b"a", b"one")


def read(data):
    return read_archive(io.BytesIO(data), "host.tar.zst")


def refused(data):
    with pytest.raises(TopologyError) as caught:
        read(data)
    return str(caught.value).removeprefix("host.tar.zst: ")


# --- reading what was packed -------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "0000:01:00.0", "x" * 90, "ünïcode", "with blank"])
PATHS = st.lists(NAMES, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))
TARGETS = st.sampled_from(["a", "../a", "/a/b", "../../../..", ".", "b/../a", "y" * 200, "//a/"])
NODES = st.one_of(st.binary(max_size=700), TARGETS, st.none())


@st.composite
def trees(draw):
    """Draw files, links and folders, none of which lies below a file or a link."""
    nodes = draw(st.dictionaries(PATHS, NODES, max_size=12))

    def above(path):
        parts = path.split("/")
        return ["/".join(parts[:end]) for end in range(2, len(parts))]

    return {
        path: value
        for path, value in nodes.items()
        if all(nodes.get(folder) is None for folder in above(path))
        and (value is None or not any(other.startswith(f"{path}/") for other in nodes))
    }


def parts_of(tree):
    files = {path: value for path, value in tree.items() if isinstance(value, bytes)}
    links = {path: value for path, value in tree.items() if isinstance(value, str)}
    return files, links, [path for path, value in tree.items() if value is None]


def answer(host, name, *arguments):
    try:
        return getattr(host, name)(*arguments)
    except UnreadableError as error:
        return error.reason


@given(trees(), st.lists(PATHS, max_size=4))
def test_a_folder_and_its_capture_have_the_same_content(tmp_path_factory, tree, others):
    folder = tmp_path_factory.mktemp("host")
    for path, value in tree.items():
        place = folder / path[1:]
        (place if value is None else place.parent).mkdir(parents=True, exist_ok=True)
        if isinstance(value, bytes):
            place.write_bytes(value)
        elif value is not None:
            place.symlink_to(value)
    live, captured = FolderTree(folder), read(pack(*parts_of(tree)))
    for path in {"/", *tree, *others, *(f"{path}/a" for path in tree)}:
        for name in ("read", "names", "exists", "link"):
            assert answer(live, name, path) == answer(captured, name, path), (name, path)
        assert answer(live, "read_part", path, 1, 5) == answer(captured, "read_part", path, 1, 5)


@given(trees())
def test_the_same_files_give_the_same_bytes(tree):
    files, links, folders = parts_of(tree)
    again = {path: files[path] for path in reversed(files)}
    assert pack(files, links, folders) == pack(again, links, folders[::-1])


def test_archives_of_tar_are_read(tmp_path):
    long = "/".join(["d" * 60] * 3)
    (tmp_path / "in" / long).mkdir(parents=True)
    (tmp_path / "in" / long / "file").write_bytes(b"x" * 1000)
    (tmp_path / "in" / "link").symlink_to("t" * 200)
    for number, form in enumerate(("gnu", "posix", "ustar")):
        words = ["tar", f"--format={form}", "-C", tmp_path / "in", "-c"]
        words += ["--exclude=./link"] if form == "ustar" else []
        names = ["."] if number else ["link", "d" * 60]
        tar = subprocess.run([*words, *names], stdout=subprocess.PIPE, check=True).stdout
        tree = read(zstandard.compress(tar))
        assert tree.read(f"/{long}/file") == b"x" * 1000
        assert tree.link("/link") == (None if form == "ustar" else "t" * 200)


def test_tar_unpacks_a_capture(tmp_path):
    long = f"/{'e' * 90}/{'f' * 90}"
    data = pack({long: b"file"}, {"/link": "z" * 150}, ["/empty"])
    (tmp_path / "host.tar").write_bytes(zstandard.ZstdDecompressor().decompress(data))
    subprocess.run(["tar", "-xf", tmp_path / "host.tar", "-C", tmp_path], check=True)
    assert (tmp_path / long[1:]).read_bytes() == b"file"
    assert (tmp_path / "link").readlink() == Path("z" * 150)
    assert (tmp_path / "empty").is_dir()


def test_unreadable_files_in_the_manifest():
    manifest = {"schema": 1, "tool": "x", "unreadable": {"/sys/a/IORT": "Permission denied"}}
    tree = read(packed(A, member(b"vmm-msi/manifest.json", json.dumps(manifest).encode())))
    assert tree.exists("/sys/a/IORT")
    assert tree.names("/sys/a") == ("IORT",)
    with pytest.raises(UnreadableError, match=r"^reading /sys/a/IORT of host.tar.zst: Permission"):
        tree.read("/sys/a/IORT")


# --- refusals ----------------------------------------------------------------------------------

DAMAGED = "not a tar archive, or damaged"
EARLY = "truncated; copy it again"
ALLOWED = "a capture has only files, links and folders"
PLAIN = (
    "its name is not a plain path: use one from the root, without the first / and without //, . "
    "and .."
)
A_CAPTURE = "a capture is a tar compressed with zstd, as vmm-msi topology capture writes it"
LATER = "this vmm-msi reads 1; read it with the vmm-msi that wrote it"
TEXT = "a path in it is not printable"


class Reason(NamedTuple):
    """The beginning and the end of a message around the reason of another project's reader."""

    start: str
    end: str = ""

    def __eq__(self, message):
        return message.startswith(self.start) and message.endswith(self.end)


ZSTD_READER = Reason("cannot be decompressed: ", f"; {A_CAPTURE}")
JSON_READER = Reason("vmm-msi/manifest.json: ")


def of(name, reason):
    return f"member {name!r}: {reason}"


def manifest(**keys):
    return member(b"vmm-msi/manifest.json", json.dumps(keys).encode())


CASES = {
    "empty": (b"", EARLY),
    "not zstd": (
        b"PK\3\4 and so on",
        ZSTD_READER,
    ),
    "not a tar": (zstandard.compress(b"text " * 300), DAMAGED),
    "less than a header": (zstandard.compress(b"text"), EARLY),
    "no end": (packed(A, end=b""), EARLY),
    "half a file": (zstandard.compress(A[:514]), EARLY),
    "a bad checksum": (packed(A.replace(b"a\0", b"b\0", 1)), DAMAGED),
    "a window of 128 MiB": (
        zstandard.ZstdCompressor(
            compression_params=zstandard.ZstdCompressionParameters(
                window_log=27, write_content_size=False
            )
        )
        .compressobj()
        .compress(os.urandom(MIB)),
        ZSTD_READER,
    ),
    "two frames": (
        packed(A) + packed(A),
        "data after its end; a capture is one zstd frame",
    ),
    "rubbish at the end": (
        packed(A) + b"x",
        "data after its end; a capture is one zstd frame",
    ),
    "a member after the end": (
        packed(A, bytes(1024), A),
        "data after the end of its tar",
    ),
    "a file of 8 GiB": (
        packed(header(b"a", size=8 << 30 >> 3)),
        of("a", f"it has {1 << 30} bytes; the limit is {MAX_FILE}"),
    ),
    "a file of a size in base 256": (
        packed(header(b"a", size=b"\x80" + bytes(10) + b"\1")),
        of("a", "its size is not a number"),
    ),
    "a pax header of 1 GiB": (
        packed(header(b"p", b"x", 1 << 30)),
        of("p", f"its extended header has {1 << 30} bytes; the limit is 4096"),
    ),
    "a GNU name of 1 GiB": (
        packed(header(b"././@LongLink", b"L", 1 << 30)),
        of("././@LongLink", f"its extended header has {1 << 30} bytes; the limit is 4096"),
    ),
    "a pax header without an end": (
        packed(member(b"p", b"99 path=a\n", b"x"), A),
        of("p", "its extended header is malformed"),
    ),
    "a pax record of no length": (
        packed(member(b"p", b"0 path=a\n", b"x"), A),
        of("p", "its extended header is malformed"),
    ),
    "a pax size": (
        packed(pax(b"size=9999999"), A),
        of("a", f"it has 9999999 bytes; the limit is {MAX_FILE}"),
    ),
    "a negative pax size": (
        packed(pax(b"size=-1"), A),
        of("a", "its size is not a number"),
    ),
    "a sparse file": (
        packed(member(b"a", kind=b"S")),
        of("a", f"it is a sparse file; {ALLOWED}"),
    ),
    "a sparse file of pax": (
        packed(pax(b"GNU.sparse.major=1"), A),
        of("pax", f"it is a sparse file; {ALLOWED}"),
    ),
    "a hard link": (
        packed(A, member(b"b", kind=b"1", target=b"a")),
        of("b", f"it is a hard link; {ALLOWED}"),
    ),
    "a character device": (packed(member(b"a", kind=b"3")), of("a", f"it is a device; {ALLOWED}")),
    "a block device": (packed(member(b"a", kind=b"4")), of("a", f"it is a device; {ALLOWED}")),
    "a pipe": (packed(member(b"a", kind=b"6")), of("a", f"it is a pipe; {ALLOWED}")),
    "an unknown type": (packed(member(b"a", kind=b"V")), of("a", f"it is of type 'V'; {ALLOWED}")),
    "a link with content": (
        packed(member(b"a", b"x", b"2", target=b"b")),
        of("a", "it is not a file, but has a size of 1"),
    ),
    "a link to nowhere": (
        packed(member(b"a", kind=b"2")),
        of("a", "it is a link without a target"),
    ),
    "an absolute path": (packed(member(b"/etc/passwd")), of("/etc/passwd", PLAIN)),
    "a path that leads up": (packed(member(b"../a")), of("../a", PLAIN)),
    "a path that leads up within": (packed(member(b"a/../../b")), of("a/../../b", PLAIN)),
    "a path with //": (packed(member(b"a//b")), of("a//b", PLAIN)),
    "a path with .": (packed(member(b"a/./b")), of("a/./b", PLAIN)),
    "a file with the name of a folder": (packed(member(b"a/")), of("a/", PLAIN)),
    "an empty path": (packed(member(b"")), of("", PLAIN)),
    "a NUL in a path": (packed(pax(b"path=a\0b"), A), of("a\0b", TEXT)),
    "a line break in a path": (packed(member(b"a\nb")), of("a\nb", TEXT)),
    "bytes in a path": (packed(member(b"\xff")), of("\\xff", TEXT)),
    "bytes in a link": (packed(member(b"a", kind=b"2", target=b"\xff")), of("a", TEXT)),
    "a long path": (
        packed(pax(b"path=" + b"p" * 513), A),
        of("p" * 40, "a path of 513 bytes; the limit is 512"),
    ),
    "a long link": (
        packed(pax(b"linkpath=" + b"p" * 513), member(b"a", kind=b"2")),
        of("a", "a path of 513 bytes; the limit is 512"),
    ),
    "a file twice": (packed(A, A), of("a", "it occurs twice")),
    "a file where a folder is": (packed(member(b"a/b"), A), of("a", "it occurs twice")),
    "a file below a file": (
        packed(A, member(b"a/b")),
        of("a", "it is not a folder, but a member lies below it"),
    ),
    "a file below a link": (
        packed(member(b"a", kind=b"2", target=b"/etc"), member(b"a/b/c")),
        of("a", "it is not a folder, but a member lies below it"),
    ),
    "a manifest of another schema": (
        packed(manifest(schema=2)),
        f"vmm-msi/manifest.json: the capture is of schema 2, {LATER}",
    ),
    "a manifest that is not an object": (
        packed(member(b"vmm-msi/manifest.json", b"[" * 100_000)),
        JSON_READER,
    ),
    "a manifest that is not UTF-8": (
        packed(member(b"vmm-msi/manifest.json", b'{"tool": "\xff"}')),
        JSON_READER,
    ),
    "a manifest with a path that leads up": (
        packed(manifest(schema=1, unreadable={"/a/../b": ""})),
        "vmm-msi/manifest.json: '/a/../b' is not an absolute path without //, . and ..",
    ),
    "a manifest with a path below a file": (
        packed(A, manifest(schema=1, unreadable={"/a/b": ""})),
        of("a", "it is not a folder, but a manifest entry lies below it"),
    ),
    "too many folders": (
        packed(*(member(b"%d/" % number + b"d/" * 40 + b"f") for number in range(2500))),
        "more than 100000 files, links and folders, the limit of a capture",
    ),
    "zeros without an end": (
        zstandard.compress(bytes(MAX_TOTAL + 1)),
        f"more than {MAX_TOTAL} bytes decompressed, the limit of a capture",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_other_archives_are_refused(case):
    data, reason = CASES[case]
    assert reason == refused(data)


def test_a_capture_beyond_the_limit_is_refused():
    files = [member(b"f%d" % number, os.urandom(MAX_FILE)) for number in range(9)]
    reason = f"more than {MAX_COMPRESSED} bytes, the limit of a capture"
    assert refused(packed(*files, level=-1)) == reason


def test_every_truncation_is_noticed():
    data = pack({f"/f{n}": os.urandom(200) for n in range(20)}, {"/l": "a"}, [])
    for size in range(len(data)):
        assert refused(data[:size]) == EARLY


def test_links_stay_within_the_capture():
    links = {b"up": b"../../../etc/passwd", b"root": b"/etc/passwd", b"loop": b"loop"}
    tree = read(packed(*(member(name, kind=b"2", target=to) for name, to in links.items())))
    assert tree.read("/up") is None
    assert tree.read("/root") is None
    with pytest.raises(UnreadableError, match="more than 40 links"):
        tree.read("/loop")


@pytest.mark.parametrize("case", [case for case in CASES if case != "too many folders"])
def test_memory_is_bounded(case):
    """Python's allocations; the window bounds those of zstd."""
    data = CASES[case][0]
    tracemalloc.start()
    try:
        refused(data)
        assert tracemalloc.get_traced_memory()[1] < 40 * MIB
    finally:
        tracemalloc.stop()


PEAK = """
import io, resource, sys
from vmm_msi.errors import TopologyError
from vmm_msi.host.files.archive import read_archive
import msgspec, zstandard
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_archive(open(sys.argv[1], "rb"), "x")
except TopologyError as error:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error)
"""


@pytest.mark.parametrize(
    ("case", "limit"),
    [("zeros without an end", 48), ("too many folders", 64), ("a window of 128 MiB", 16)],
)
def test_a_bomb_needs_little_memory(tmp_path, case, limit):
    bomb = tmp_path / "bomb.tar.zst"
    bomb.write_bytes(CASES[case][0])
    words = [sys.executable, "-c", PEAK, bomb]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    grown = int(done.stdout.split()[0]) / 1024
    assert grown < limit


def test_errors_name_the_file(tmp_path):
    with pytest.raises(TopologyError) as caught:
        open_archive(tmp_path / "none.tar.zst")
    assert (
        str(caught.value) == f"{tmp_path}/none.tar.zst: cannot be read: No such file or directory"
    )
    (tmp_path / "cut.tar.zst").write_bytes(packed(A)[:-5])
    with pytest.raises(TopologyError) as caught:
        open_archive(Path(tmp_path / "cut.tar.zst"))
    assert str(caught.value) == f"{tmp_path}/cut.tar.zst: {EARLY}"


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"/" + "p" * 513: b""}, "packing /ppp"),
        ({"/a": bytes(MAX_FILE + 1)}, f"packing /a: larger than {MAX_FILE} bytes"),
        (
            {"/a\nb": b""},
            "packing /a\nb: a path in it is not printable or is longer than 512 bytes",
        ),
    ],
)
def test_unreadable_content_is_not_packed(files, reason):
    with pytest.raises(TopologyError) as caught:
        pack(files, {}, [])
    assert str(caught.value).startswith(reason)
