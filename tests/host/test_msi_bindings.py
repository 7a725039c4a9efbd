"""The kernel's file of guest MSI bindings: read with bounds, written one command at a time."""

import errno
import os
import threading

import pytest
from host.host_files import HostFiles

from vmm_msi.errors import BackendError, UnreadableError
from vmm_msi.host import msi_bindings
from vmm_msi.host.join import join
from vmm_msi.host.live import read_sources
from vmm_msi.host.msi_bindings import (
    BindingAllocator,
    BindingCommand,
    BoundFunction,
    KernelBinding,
    MsiBindingsFile,
    parse_bindings,
    read_version,
)
from vmm_msi.types import Iova, Ipa, Pa, PciAddress

A, B, C = (PciAddress(0, bus, 0, 0) for bus in (0x11, 0x12, 0x13))
TEXT = """\
version 1
device 0000:11:00.0 context 1 hwpt 3 vdevice 8 vsid 0x1100 allocator direct
device 0000:12:00.0 context 1 hwpt 3 vdevice - vsid - allocator direct
device 0000:13:00.0 context 2 hwpt - vdevice - vsid - allocator -
binding 0000:11:00.0 iova 0xfffff000 gpa 0x8090000 shift 12 hpa 0x8090000 used
binding 0000:11:00.0 iova 0xffffe000 gpa 0x8090000 shift 12 hpa - unused
pending 0000:12:00.0 iova 0xfffff000 gpa 0x8090000 shift 12
"""
BINDING = KernelBinding(A, Iova(0xFFFFF000), Ipa(0x8090000), 12, hpa=Pa(0x8090000), used=True)


def test_the_whole_file():
    content = parse_bindings(TEXT)
    assert content.functions == {
        A: BoundFunction(1, 3, 8, "direct"),
        B: BoundFunction(1, 3, None, "direct"),
        C: BoundFunction(2),
    }
    unused = KernelBinding(A, Iova(0xFFFFE000), Ipa(0x8090000), 12)
    pending = KernelBinding(B, Iova(0xFFFFF000), Ipa(0x8090000), 12, pending=True)
    assert content.of(A) == (BINDING, unused)
    assert content.of(B) == (pending,)
    assert [str(binding).rpartition(", ")[2] for binding in content.bindings] == [
        "used",
        "unused",
        "pending",
    ]


def test_a_kernel_without_devices_and_one_with_more_to_say():
    assert parse_bindings("version 1\n").bindings == ()
    later = TEXT.replace("used\n", "used since 12\n").replace("shift 12\n", "shift 12 age 3\n")
    more = parse_bindings(f"{later}context 1 devices 2\n")
    assert more == parse_bindings(TEXT)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "first line"),
        ("version 0x1\n", "first line"),
        ("version 2\nanything\n", "version 2 is unknown; valid: 1"),
        ("version 1\ndevice 0000:11:00.0 context\n", "line 2"),
        ("version 1\ndevice somewhere context 1\n", "line 2"),
        (TEXT.replace("0xfffff000", "0xfffff00000000000f"), "line 5"),
        (TEXT.replace("iova 0xffffe000", "iova -0xffffe000"), "line 6"),
        (TEXT.replace("used\n", "worn\n", 1), "line 5"),
        (TEXT.replace(" used\n", "\n", 1), "line 5"),
        ("version 1\n" + "\n" * (1 << 16), "more than 65536 lines"),
    ],
)
def test_another_form_is_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_bindings(text)


def test_the_version_alone_may_be_unknown():
    assert read_version("version 7\nwhatever") == 7


def test_a_file_that_is_missing_too_large_or_not_text(tmp_path):
    file = MsiBindingsFile(tmp_path / "msi_bindings")
    with pytest.raises(UnreadableError, match="takes no guest MSI bindings"):
        file.read()
    with pytest.raises(BackendError, match="takes no guest MSI bindings") as refusal:
        file.run(BindingCommand.prepare(A))
    assert refusal.value.errno == errno.ENOENT
    file.path.write_bytes(b"version 1\n" + b"x" * msi_bindings.MAX_BYTES)
    with pytest.raises(UnreadableError, match="more than 8388608 bytes"):
        file.read()
    file.path.write_bytes(b"version 1\n\xff\n")
    with pytest.raises(UnreadableError, match="can't decode"):
        file.read()


def test_each_command_is_one_write(tmp_path):
    """A FIFO returns what one write put into it, if it is read before the next one."""
    path = tmp_path / "msi_bindings"
    os.mkfifo(path)
    file = MsiBindingsFile(path)
    commands = [
        BindingCommand.allocator(A, BindingAllocator.LIST_ONE_GRANULE),
        BindingCommand.bind(BINDING),
        BindingCommand.unbind(B, Iova(0xFFFFF000)),
        BindingCommand.prepare(A),
    ]
    written = []
    for command in commands:
        writer = threading.Thread(target=file.run, args=[command])
        writer.start()
        with path.open("rb", buffering=0) as reader:
            written.append(reader.read(4096))
        writer.join(10)
    assert written == [
        b"allocator 0000:11:00.0 list-one-granule\n",
        b"bind 0000:11:00.0 0xfffff000 0x8090000 12\n",
        b"unbind 0000:12:00.0 0xfffff000\n",
        b"prepare 0000:11:00.0\n",
    ]


def test_the_kernels_errno_is_kept():
    """/dev/full refuses every write with ENOSPC."""
    with pytest.raises(BackendError) as refusal:
        MsiBindingsFile(msi_bindings.Path("/dev/full")).run(BindingCommand.prepare(A))
    assert refusal.value.errno == errno.ENOSPC
    assert str(refusal.value) == (
        "ENOSPC: writing 'prepare 0000:11:00.0' to /dev/full: No space left on device"
    )


@pytest.mark.parametrize(
    ("content", "version"),
    [(TEXT.encode(), 1), (b"version 2\nx\n", 2), (b"nonsense\n", None), (b"\xff\n", None)],
)
def test_the_version_is_a_fact_of_the_host(content, version):
    files = HostFiles()
    files.files[str(msi_bindings.PATH)] = content
    host = join(read_sources(files.tree()))
    assert host.msi_bindings == version
    assert msi_bindings.takes_bindings(host) == (version == 1)
    files.unreadable[str(msi_bindings.PATH)] = "Permission denied"
    assert join(read_sources(files.tree())).msi_bindings is None


def test_a_file_that_another_process_opened(tmp_path):
    path = tmp_path / "msi_bindings"
    path.write_text(TEXT)
    with path.open("r+b", buffering=0) as opened:
        file = MsiBindingsFile(tmp_path / "nowhere", opened.fileno())
        assert file.read() == file.read() == parse_bindings(TEXT)
        file.run(BindingCommand.prepare(A))
    assert path.read_text().startswith("prepare 0000:11:00.0\n")
