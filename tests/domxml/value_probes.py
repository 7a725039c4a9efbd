"""Generate ``vmm_msi/domxml/libvirt_values.py`` from a real libvirt.

``PYTHONPATH=tests .venv/bin/python -m domxml.value_probes`` writes it, as root. The attributes and
their words are those of libvirt's schema; then a guest with each value is defined, without
validation, on libvirt's test driver, and read back. A test compares the module with a new one.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

from lxml import etree

from vmm_msi.domxml.attribute_values import Attribute, Kind
from vmm_msi.domxml.parse import parse
from vmm_msi.errors import HypervisorError
from vmm_msi.lab.build.root import ensure_root
from vmm_msi.lab.machine.daemon import LabDaemon
from vmm_msi.libvirt_driver import connect

MODULE = Path(__file__).resolve().parents[2] / "vmm_msi/domxml/libvirt_values.py"
SCHEMAS = "usr/share/libvirt/schemas"
_RNG = "{http://relaxng.org/ns/structure/1.0}"

#: A guest with every element; the probes change one attribute of it.
GUEST = """\
<domain type='test'>
  <name>probe</name>
  <uuid>c7a5fdbd-edaf-9455-926a-d65c16db1809</uuid>
  <memory unit='MiB'>64</memory>
  <iommufd enabled='yes' fdgroup='a'/>
  <os><type arch='aarch64' machine='virt'>hvm</type></os>
  <devices>
    <controller type='pci' index='0' model='pcie-root'/>
    <controller type='pci' index='1' model='pcie-expander-bus'><target busNr='16'/></controller>
    <controller type='pci' index='2' model='pcie-root-port'><target/>
      <address type='pci' domain='0x0000' bus='0x01' slot='0x01' function='0x0'/></controller>
    <hostdev mode='subsystem' type='pci' managed='yes'>
      <driver/>
      <source><address domain='0x0000' bus='0x03' slot='0x00' function='0x0'/></source>
      <address type='pci' domain='0x0000' bus='0x02' slot='0x01' function='0x0'/>
    </hostdev>
    <iommu model='smmuv3'><driver pciBus='1' accel='on'/></iommu>
  </devices>
</domain>
"""
#: The elements to probe: the path in the table, and the one in the guest.
ELEMENTS = {
    "iommufd": "iommufd",
    "devices/iommu": "devices/iommu",
    "devices/iommu/driver": "devices/iommu/driver",
    "devices/hostdev": "devices/hostdev",
    "devices/hostdev/driver": "devices/hostdev/driver",
    "devices/hostdev/source/address": "devices/hostdev/source/address",
    "devices/hostdev/address": "devices/hostdev/address",
    "devices/controller": "devices/controller[3]",
    "devices/controller/target": "devices/controller[3]/target",
    "devices/controller/address": "devices/controller[3]/address",
}
#: Words that many attributes accept, besides those of the schema.
WORDS = ("yes", "no", "on", "off", "auto", "default")
#: A word that no attribute accepts.
NONSENSE = "vmm-msi"
#: Numbers to find a range with.
LARGEST = 1 << 65


class Schema:
    """libvirt's RELAX NG schema of a domain."""

    def __init__(self, folder):
        self._defines = {}
        files, read = ["domain.rng"], set()
        while files:
            name = files.pop()
            if name in read:
                continue
            read.add(name)
            root = etree.parse(folder / name).getroot()
            files += [include.get("href") for include in root.iter(f"{_RNG}include")]
            for define in root.iter(f"{_RNG}define"):
                self._defines.setdefault(define.get("name"), []).append(define)

    def attributes(self, path):
        """Return the attributes of an element, each with its words."""
        tag, *below = path.removeprefix("devices/").split("/")
        elements = [
            element
            for define in itertools.chain(*self._defines.values())
            for element in define.iter(f"{_RNG}element")
            if element.get("name") == tag
        ]
        for name in below:
            elements = [
                child
                for element in elements
                for child in self._parts(element, "element")
                if child.get("name") == name
            ]
        attributes = {}
        for element in elements:
            for node in self._parts(element, "attribute"):
                words = {value.text for value in self._parts(node, "value")}
                attributes.setdefault(node.get("name"), set()).update(words)
        return dict(sorted(attributes.items()))

    def _parts(self, node, kind, seen=()):
        """Yield the nodes of a kind in an element or an attribute, not in elements below it."""
        for child in node.iterchildren(f"{_RNG}*"):
            tag = child.tag.removeprefix(_RNG)
            if tag == kind:
                yield child
            elif tag == "ref" and child.get("name") not in seen:
                for define in self._defines.get(child.get("name"), ()):
                    yield from self._parts(define, kind, (*seen, child.get("name")))
            elif tag not in {"element", "attribute"}:
                yield from self._parts(child, kind, seen)


class Prober:
    """Gives values to a libvirt, and remembers what it did with them."""

    def __init__(self, connection):
        self._connection = connection
        self._results = {}

    def refusal(self, path, attribute, value, *, without=None):
        """Return libvirt's message about a value; None if it keeps it, "" if it changes it.

        :param value: None to remove the attribute.
        :param without: another attribute to remove.
        """
        key = (path, attribute, value, without)
        if key not in self._results:
            self._results[key] = self._probe(*key)
        return self._results[key]

    def _probe(self, path, attribute, value, without):
        root = parse(GUEST, "the guest")
        element = root.find(ELEMENTS[path])
        for name in filter(None, (attribute if value is None else None, without)):
            element.attrib.pop(name, None)
        if value is not None:
            element.set(attribute, value)
        try:
            text = self._connection.define_text(
                "probe", etree.tostring(root).decode(), validate=False
            )
        except HypervisorError as error:
            message = str(error).partition(f"{self._connection.uri}: ")[2]
            # The value is valid, but another element of the guest has it.
            return None if message.startswith("XML error: Multiple") else message
        element = parse(text, "the echo").find(ELEMENTS[path])
        kept = None if element is None else element.get(attribute)
        return None if value is None or _same(kept, value) else ""

    def attribute(self, path, name, schema_words):
        """Return what libvirt does with an attribute; None if it does not read it there."""

        def refusal(value, **options):
            return self.refusal(path, name, value, **options)

        missing = refusal(None)
        known = {
            "missing": missing if missing and f"'{name}'" in missing else None,
            "needs": self._needs(path, name, schema_words),
        }
        nonsense = refusal(NONSENSE)
        # A word may be refused for another reason, which depends on other parts of the guest.
        words = [w for w in (*schema_words, *WORDS) if refusal(w) != _of(nonsense, w)]
        words = sorted(set(words))
        number = next((str(n) for n in (1, 0, 2, 3, 44) if refusal(str(n)) is None), None)
        if nonsense is None:
            return Attribute(**known)
        if number is not None and not any(refusal(word) is None for word in words):
            return Attribute(Kind.NUMBER, **self._range(refusal, int(number)), **known)
        kept = [word for word in words if refusal(word) is None]
        if kept:
            words = words if nonsense else kept
            return Attribute(Kind.WORD, tuple(words), refusal=_template(nonsense), **known)
        messages = {refusal(value) for value in (*words, "1", "44")} - {nonsense, ""}
        messages = {m for m in messages if m and NONSENSE not in m and "Invalid value" not in m}
        return Attribute(Kind.NEVER, refusal=min(messages)) if messages else None

    def _needs(self, path, name, schema_words):
        element = parse(GUEST, "the guest").find(ELEMENTS[path])
        valid = [
            v for v in (*sorted(schema_words), "1", "44") if self.refusal(path, name, v) is None
        ]
        for other in element.attrib if valid else ():
            if other == name or self.refusal(path, name, None, without=other) is not None:
                continue
            message = self.refusal(path, name, valid[0], without=other)
            if message and f"'{valid[0]}'" not in message:
                return other, message
        return None

    def _range(self, refusal, accepted):
        def keeps(number):
            # libvirt leaves out a 0 that is the default.
            return refusal(str(number)) in ({None, ""} if number == 0 else {None})

        high = accepted
        step = 1
        while high + step <= LARGEST and keeps(high + step):
            high, step = high + step, step * 2
        while step:
            high += step if high + step <= LARGEST and keeps(high + step) else 0
            step //= 2
        low = next(n for n in range(accepted, -3, -1) if not keeps(n - 1))
        base = 0 if refusal("0x1") is None or refusal("0x10") is None else 10
        return {
            "base": base,
            "low": low,
            "high": high,
            "refusal": _template(refusal(NONSENSE)),
            "below": _number_template(refusal(str(low - 1)), low - 1),
            "above": _number_template(refusal(str(high + 1)), high + 1),
        }


def _same(kept, value):
    try:
        return kept == value or int(kept, 0) == int(value, 0)
    except (TypeError, ValueError):
        return False


def _of(nonsense, value):
    """Return the message about a value that is as wrong as the nonsense."""
    return nonsense and nonsense.replace(f"'{NONSENSE}'", f"'{value}'")


def _template(message):
    return message.replace(f"'{NONSENSE}'", "'{value}'") if message else None


def _number_template(message, number):
    if not message:
        return None
    for text, name in ((str(number), "{number}"), (f"{number:#x}", "{hex}")):
        message = re.sub(rf"(?<![\w-]){text}(?!\w)", lambda _match, name=name: name, message)
    return message


def table(connection, schema):
    """Return the attributes of each element, in the order of :data:`ELEMENTS`."""
    prober = Prober(connection)
    return {
        path: {
            name: attribute
            for name, words in schema.attributes(path).items()
            if (attribute := prober.attribute(path, name, words)) is not None
        }
        for path in ELEMENTS
    }


def module(release, attributes):
    """Return the text of the module."""
    lines = [
        '"""The values of attributes that libvirt accepts, refuses or changes.',
        "",
        "Generated by tests/domxml/value_probes.py: a real libvirt was given each value.",
        '"""',
        "",
        "from vmm_msi.domxml.attribute_values import Attribute, Kind",
        "",
        "#: The release of that libvirt.",
        f'LIBVIRT = "{release}"',
        "",
    ]
    shared = _shared(attributes)
    for tag, common in shared.items():
        lines += [
            f"#: The attributes that every <{tag}> has.",
            f"_{tag.upper()}: dict[str, Attribute] = {{",
            *_entries(common),
            "}",
            "",
        ]
    lines += [
        "#: The attributes by the path of their element; a device is a PCI device or an SMMUv3.",
        "ATTRIBUTES: dict[str, dict[str, Attribute]] = {",
    ]
    for path, known in attributes.items():
        tag = path.rpartition("/")[2]
        common = shared.get(tag, {})
        own = {name: known[name] for name in known if name not in common}
        lines += [
            f'    "{path}": {{',
            *([f"        **_{tag.upper()},"] if common else []),
            *_entries(own),
            "    },",
        ]
    lines.append("}")
    return ruff("\n".join(lines) + "\n")


def _shared(attributes):
    """Return the attributes that all elements of a tag have alike, by the tag."""
    by_tag = {}
    for path, known in attributes.items():
        by_tag.setdefault(path.rpartition("/")[2], []).append(known)
    shared = {}
    for tag, (first, *others) in by_tag.items():
        common = {
            name: attribute
            for name, attribute in first.items()
            if others and all(other.get(name) == attribute for other in others)
        }
        if common:
            shared[tag] = common
    return shared


def _entries(known):
    return [f'        "{name}": {_call(attribute)},' for name, attribute in known.items()]


def ruff(text):
    """Return formatted code."""
    program = Path(sys.executable).parent / "ruff"
    command = [program, "format", "--stdin-filename", str(MODULE), "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


def _call(attribute):
    default = Attribute()
    fields = [
        f"{field.name}={_literal(getattr(attribute, field.name))}"
        for field in dataclasses.fields(attribute)
        if getattr(attribute, field.name) != getattr(default, field.name)
    ]
    return f"Attribute({', '.join(fields)})"


def _literal(value):
    if isinstance(value, Kind):
        return f"Kind.{value.name}"
    return json.dumps(value) if isinstance(value, str) else repr(value)


def generate(root, daemon):
    """Return the text of the module for the libvirt of a root."""
    schema = Schema(root.path / SCHEMAS)
    with connect(daemon.test_uri) as connection:
        connection.define_text("probe", GUEST, validate=False)
        try:
            return module(root.libvirt, table(connection, schema))
        finally:
            connection.undefine("probe")


if __name__ == "__main__":
    lab_root = ensure_root()
    with LabDaemon(lab_root) as lab_daemon:
        MODULE.write_text(generate(lab_root, lab_daemon))
