"""Each value of each kind of input in turn is text that a terminal obeys: none of it is printed.

The inputs are documents with every string in them replaced, one at a time: domain XML, a node of
libvirt, TOML, a device tree, ACPI tables, a recording, logs, a capture, and the environment.
"""

from __future__ import annotations

import io
import json
import re
import tarfile

import pytest
from host.firmware.acpi_builder import iort, its_group, madt, root_complex, smmu_v3
from lxml import etree
from zstandard import ZstdCompressor

from vmm_msi import samples
from vmm_msi.cli import main
from vmm_msi.explain.known_texts import texts

A = "0000:01:00.0"
BOARD = samples.path("eight-its-server.dtb")
TWO_ITS = samples.path("two-its.toml")
#: What a terminal obeys; XML cannot have the first five.
ESCAPES = "\x1b]0;t\x07\x1b[2J\r\x00\x9b31m\u202e\u2066\x7f"
IN_XML = "\x9b31m\u202e\u2066\x7f\t\n"
FAULT = (
    "arm-smmu-v3 arm-smmu-v3.0.auto: event: F_TRANSLATION client: 0000:01:00.0 sid: 0x100 "
    "ssid: 0x0 iova: 0x8000040 ipa: 0x0"
)


@pytest.fixture
def shown(capfd):
    """Run a command line twice, as text and as JSON, and check what it prints."""

    def run(*words, forms=("text", "json")):
        for form in forms:
            try:
                main([*map(str, words), "--format", form])
            except SystemExit:
                pytest.fail("it exits")
            out, err = capfd.readouterr()
            text = out + err
            assert all(line.isprintable() for line in text.split("\n")), text
            if form == "json" and out:
                json.loads(out)

    return run


def variants(root, hostile):
    """Replace each kind of attribute and of text below ``root`` in turn; yield its place."""
    seen = set()
    for element in root.iter(etree.Element):
        for name, value in element.attrib.items():
            if (element.tag, name) not in seen:
                seen.add((element.tag, name))
                element.set(name, hostile)
                yield f"{element.tag}/{name}"
                element.set(name, value + hostile)
                yield f"{element.tag}/{name}, at its end"
                element.set(name, value)
        if element.text and element.text.strip() and element.tag not in seen:
            seen.add(element.tag)
            text, element.text = element.text, hostile
            yield element.tag
            element.text = text


@pytest.fixture
def guest(capfd, tmp_path):
    """The definition of a guest with a record and with devices of every kind."""
    path = tmp_path / "node.xml"
    path.write_bytes(samples.path("test-driver.xml").read_bytes())
    words = ["attach", "guest0", A, "-c", f"test://{path}", "--host", str(BOARD), "--print-xml"]
    assert main(words) == 0
    root = etree.fromstring(capfd.readouterr().out)
    more = (
        "<x xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>"
        "<interface type='hostdev'><source><address type='pci' domain='0' bus='7' slot='0' "
        "function='0'/></source></interface>"
        "<qemu:commandline><qemu:arg value='-device'/>"
        "<qemu:arg value='vfio-pci,host=0000:07:00.0'/></qemu:commandline></x>"
    )
    interface, commandline = etree.fromstring(more)
    root.find("devices").append(interface)
    root.append(commandline)
    return root


@pytest.mark.parametrize(
    "words",
    [
        ["doctor", BOARD, "--domain"],
        ["compare", "--host", BOARD, "--strategy", "identity", "--domain"],
        ["explain", FAULT, "--host", BOARD, "--domain"],
        ["status"],
    ],
    ids=lambda words: words[0],
)
def test_domain_xml(shown, guest, nowhere, words):
    path = nowhere / "guest.xml"
    places = 0
    for _place in variants(guest, IN_XML):
        path.write_bytes(etree.tostring(guest))
        shown(*words, path, forms=("text", "json")[places % 2 :][:1])
        places += 1
    assert places > 100


def test_a_node_of_libvirt(shown, tmp_path):
    path = tmp_path / "node.xml"
    tree = etree.parse(samples.path("test-driver.xml"))
    for number, _place in enumerate(variants(tree.getroot(), IN_XML)):
        tree.write(path)
        uri = f"test://{path}"
        form = [("text", "json")[number % 2]]
        shown("status", "-c", uri, forms=form)
        shown("status", "guest0", "-c", uri, forms=form)
        shown("topology", "show", uri, forms=form)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("two-its.toml", ["compare", "--strategy", "identity", "--scenario"]),
        ("two-its.toml", ["topology", "show"]),
        ("eight-its.toml", ["doctor"]),
    ],
)
def test_a_scenario(shown, nowhere, name, words):
    text = samples.path(name).read_text()
    path = nowhere / "s.toml"
    hostile = json.dumps(ESCAPES).replace("\x7f", r"\u007f")
    strings_and_keys = re.compile(r'"[^"\n]*"|^\w+(?= =)', re.MULTILINE)
    places = {match[0]: match.span() for match in strings_and_keys.finditer(text)}
    for start, end in places.values():
        path.write_text(text[:start] + hostile + text[end:])
        shown(*words, path)
    assert len(places) > 5


def patched(data, step):
    """Yield ``data`` with four bytes that a terminal obeys at each place, with the checksum."""
    for at in range(0, len(data) - 4, step):
        changed = bytearray(data)
        changed[at : at + 4] = b"\x1b[2J"
        yield bytes(changed)


def test_a_device_tree(shown, nowhere):
    """Each string in it, so node names, properties' names and values, is overwritten."""
    data = BOARD.read_bytes()
    path = nowhere / "board.dtb"
    places = {match[0]: match.start() for match in re.finditer(rb"[a-zA-Z@,.-]{4,}", data)}
    for number, at in enumerate(places.values()):
        path.write_bytes(data[:at] + b"\x1b[2J" + data[at + 4 :])
        shown("topology", "show", path, forms=[("text", "json")[number % 2]])
    assert len(places) > 30


def test_acpi_tables(shown, nowhere):
    (nowhere / "acpi").mkdir()
    table = iort(its_group(0), smmu_v3((0, 0xFFFF, 0, 0, 0)), root_complex((0, 0xFFFF, 0, 1, 0)))
    (nowhere / "acpi" / "APIC").write_bytes(madt((0, 0x20000000)))
    for changed in patched(table, 8):
        (nowhere / "acpi" / "IORT").write_bytes(changed)
        shown("topology", "show", nowhere / "acpi", forms=["text"])


def strings(document, path=()):
    """Yield the path of each string in a JSON document."""
    if isinstance(document, str):
        yield path
    for key, value in (
        document.items() if isinstance(document, dict)
        else enumerate(document) if isinstance(document, list) else ()
    ):  # fmt: skip
        yield from strings(value, (*path, key))


def test_a_recording(shown, nowhere, request):
    source = request.config.rootpath / "tests" / "recording" / "two-nvmes.json"
    document = json.loads(source.read_text())
    seen = set()
    for path in list(strings(document)):
        kind = tuple(key for key in path if isinstance(key, str))
        if kind in seen:
            continue
        seen.add(kind)
        *folders, last = path
        place = document
        for key in folders:
            place = place[key]
        value, place[last] = place[last], ESCAPES
        (nowhere / "r.json").write_text(json.dumps(document))
        place[last] = value
        shown("replay", nowhere / "r.json", forms=["text"])
    assert len(seen) > 10


def test_log_lines(shown, nowhere):
    """Every known text, with escapes for what it prints, and before and after it."""
    forms = [form for text in texts() for form in (*text.formats, *text.older)]
    conversion = re.compile(r"%[-+ #0-9.*lhzjt]*[a-zA-Z]+")
    lines = [FAULT, *(conversion.sub(lambda _match: ESCAPES, form) for form in forms)]
    lines += [f"{ESCAPES}{line}{ESCAPES}" for line in lines]
    lines += [f"[ 1.0] {line}".replace(" ", f" {ESCAPES}", 4) for line in lines]
    for start in range(0, len(lines), 60):
        shown("explain", "\n".join(lines[start : start + 60]).replace("\x00", ""))
        shown("explain", "--in-guest", "\n".join(lines[start : start + 60]).replace("\x00", ""))


def test_members_of_a_capture(shown, nowhere):
    for kind in (tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE):
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as archive:
            member = tarfile.TarInfo("sys/" + ESCAPES.replace("\x00", ""))
            member.type, member.linkname = kind, ESCAPES.replace("\x00", "")
            archive.addfile(member)
        path = nowhere / "host.tar.zst"
        path.write_bytes(ZstdCompressor().compress(data.getvalue()))
        for words in (["topology", "show"], ["doctor"], ["explain", FAULT, "--host"]):
            shown(*words, path)


@pytest.mark.parametrize(
    "variable",
    ["VMM_MSI_CONFIG", "LIBVIRT_DEFAULT_URI", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "HOME", "TERM"],
)
def test_the_environment(shown, monkeypatch, variable):
    value = ESCAPES.replace("\x00", "")
    monkeypatch.setenv(variable, f"/{value}" if variable.startswith("XDG") else value)
    shown("config", "check")
    shown("plugins", "list")
    shown("status", "guest0")
    shown("doctor", TWO_ITS)
    shown("compare", "--scenario", TWO_ITS, "--strategy", "nope")


def test_a_wrong_form_is_noticed(shown, monkeypatch):
    """The check fails where text passes unchanged."""
    monkeypatch.setattr("vmm_msi.terminal.printable", str)
    with pytest.raises(AssertionError):
        shown("doctor", "\x1b[2J", forms=["text"])
