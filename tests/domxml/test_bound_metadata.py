"""The bound devices of a running guest, in its live metadata."""

from __future__ import annotations

import pytest
from lxml import etree

from vmm_msi.domxml.bound_metadata import (
    NAMESPACE,
    PREFIX,
    BoundDevice,
    BoundGuest,
    bound_xml,
    read_bound,
)
from vmm_msi.domxml.libvirt_domain import DomainXml
from vmm_msi.errors import DomainXmlError
from vmm_msi.types import Iova, Outcome, PciAddress

A, B = PciAddress(0, 1, 0, 0), PciAddress(1, 1, 0, 0)
BOUND = BoundGuest(
    7,
    "first-in-group",
    (
        BoundDevice(
            A, "multi-its:mode=vsmmu", "qemu", (Iova(0x8000040), Iova(0x8001040)), Outcome.DELIVERED
        ),
        BoundDevice(B, "identity", "sim"),
    ),
)
DEVICE = "<b:device host='0000:01:00.0' strategy='identity' by='sim'/>"


def domain(*elements):
    """Return domain XML with these elements in its metadata."""
    text = "<domain id='7'><name>g</name><metadata>{}</metadata></domain>"
    return DomainXml.parse(text.format("".join(elements)), "a test")


def as_libvirt_writes(xml):
    """Put the element into its namespace, as virXMLInjectNamespace of libvirt does."""
    element = etree.fromstring(xml)
    for node in element.iter():
        node.tag = f"{{{NAMESPACE}}}{node.tag}"
    return etree.tostring(element, encoding="unicode")


def guest(inside, attributes="run='7' its-selector='first-in-group'", uri=NAMESPACE):
    return f"<b:guest xmlns:b='{uri}' {attributes}>{inside}</b:guest>"


def test_written_devices_are_read_back():
    assert read_bound(domain(as_libvirt_writes(bound_xml(BOUND)))) == BOUND


def test_a_guest_without_bound_devices():
    record = "<v:domain xmlns:v='https://vmm-msi.org/xmlns/libvirt/domain/1'/>"
    assert read_bound(domain(record, "<other xmlns='urn:other'/>")) is None
    assert PREFIX != "vmm-msi"


def test_the_element_has_every_field():
    assert bound_xml(BOUND) == (
        '<guest run="7" its-selector="first-in-group">'
        '<device host="0000:01:00.0" strategy="multi-its:mode=vsmmu" by="qemu" '
        'programmed="0x8000040 0x8001040" outcome="delivered"/>'
        '<device host="0001:01:00.0" strategy="identity" by="sim"/></guest>'
    )


@pytest.mark.parametrize(
    ("element", "words"),
    [
        (guest("", uri=NAMESPACE.replace("/1", "/2")), "it has version '2'"),
        (guest("") * 2, "there are two"),
        (guest("").replace("b:guest", "b:host"), "<host> is unknown"),
        (guest("", "run='7'"), "<guest> lacks its-selector"),
        (guest("", "run='7' its-selector='' x='1'"), "<guest> has unknown attributes: x"),
        (guest("", "run='-7' its-selector=''"), "run is '-7', not a number"),
        (guest("", f"run='{'9' * 5000}' its-selector=''"), "not a number"),
        (guest("<b:else/>"), "<else> is unknown"),
        (guest("<device xmlns='urn:other'/>"), "<device> is unknown"),
        (guest("<b:device host='0000:01:00.0'/>"), "<device> lacks by, strategy"),
        (guest(DEVICE.replace("'sim'", "'me'")), "by is 'me'"),
        (guest(DEVICE.replace("/>", " outcome='fine'/>")), "outcome 'fine' is unknown"),
        (guest(DEVICE.replace("/>", " programmed='-0x1'/>")), "programmed is '-0x1'"),
        (guest(DEVICE.replace("/>", " programmed='0x1_0'/>")), "programmed is '0x1_0'"),
        (guest(DEVICE.replace("01:00.0", "1")), "'0000:1'"),
        (guest(DEVICE.replace("/>", "><b:x/></b:device>")), "<device> has elements"),
        (guest(DEVICE * 2), "it lists a device twice"),
    ],
)
def test_unknown_forms_are_refused(element, words):
    with pytest.raises(DomainXmlError) as caught:
        read_bound(domain(element))
    assert words in str(caught.value)
    assert str(caught.value).startswith("reading the bound devices of g: ")
    assert f"virsh metadata g {NAMESPACE} --remove --live" in str(caught.value)
