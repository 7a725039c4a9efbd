import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_msi.domxml.libvirt_domain import DomainXml
from vmm_msi.domxml.metadata import (
    NAMESPACE,
    BindingRecord,
    DeviceRecord,
    DomainRecord,
    VsmmuRecord,
    read_record,
    write_record,
)
from vmm_msi.errors import DomainXmlError
from vmm_msi.types import Iova, Ipa, Outcome, PciAddress

words = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FFF, exclude_characters="\x7f"))
ids = st.integers(0, 255)
maybe = st.none() | ids
bindings = st.builds(
    BindingRecord,
    st.none() | st.integers(0, 2**64 - 1).map(Iova),
    st.none() | st.integers(0, 2**64 - 1).map(Ipa),
    st.lists(st.integers(0, 2**64 - 1).map(Iova), max_size=3).map(tuple),
    st.none() | st.sampled_from(Outcome),
)
vsmmus = st.builds(VsmmuRecord, st.just(1), ids, ids, maybe, st.booleans(), st.booleans())
devices = st.builds(
    DeviceRecord,
    st.builds(PciAddress, st.integers(0, 0xFFFF), ids, st.integers(0, 31), st.integers(0, 7)),
    words,
    words,
    st.just(1),
    ids,
    ids,
    maybe,
    st.dictionaries(words, words, max_size=3),
    st.none() | bindings,
)
records = st.builds(
    DomainRecord,
    vsmmus.map(lambda v: (v,)),
    st.lists(devices, max_size=3).map(tuple),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)

EMPTY = "<domain type='kvm'>\n  <name>g</name>\n  <devices/>\n</domain>\n"


def domain(inside="", name="g"):
    text = f"<domain><name>{name}</name><metadata>{inside}</metadata><devices/></domain>"
    return DomainXml.parse(text, "here")


@given(records)
def test_round_trip(record):
    xml = DomainXml.parse(EMPTY, "here")
    write_record(xml, record)
    again = DomainXml.parse(str(xml), "here")
    assert read_record(again) == record
    write_record(again, record)
    assert str(again) == str(xml)


def test_a_guest_without_a_record():
    assert read_record(DomainXml.parse(EMPTY, "here")) is None
    assert read_record(domain("<o:x xmlns:o='urn:o'/>")) is None


def test_metadata_is_removed_only_if_added_and_empty():
    xml = DomainXml.parse(EMPTY, "here")
    write_record(xml, DomainRecord((VsmmuRecord(1, 16, 0),), metadata_added=True))
    write_record(xml, None)
    assert str(xml) == EMPTY
    xml = domain("<o:x xmlns:o='urn:o'/>")
    before = str(xml)
    write_record(xml, DomainRecord((VsmmuRecord(1, 16, 0),), metadata_added=True))
    write_record(xml, None)
    assert str(xml) == before


@pytest.mark.parametrize(
    ("inside", "words"),
    [
        ("<v:domain xmlns:v='https://vmm-msi.org/xmlns/libvirt/domain/2'/>", "version '2'"),
        ("<v:domain xmlns:v='{}' later='1'/>", "unknown attributes: later"),
        ("<v:other xmlns:v='{}'/>", "<other> is unknown"),
        ("<v:domain xmlns:v='{}'><v:new/></v:domain>", "<new> is unknown"),
        ("<v:domain xmlns:v='{}'><v:vsmmu pxb='1'/></v:domain>", "lacks accelerated, bus-nr"),
        (
            (
                "<v:domain xmlns:v='{}'><v:vsmmu pxb='x' bus-nr='1' smmu='0' pci-bus='yes' "
                "accelerated='no'/></v:domain>"
            ),
            "pxb is 'x'",
        ),
        (
            (
                "<v:domain xmlns:v='{}'><v:device host='0000:01:00.0' strategy='s' backend='b' "
                "pxb='1' root-port='2' smmu='0'/></v:domain>"
            ),
            "the vSMMU 1 of device 0000:01:00.0 is missing",
        ),
        (
            (
                "<v:domain xmlns:v='{}'><v:device host='nowhere' strategy='s' backend='b' "
                "pxb='1' root-port='2' smmu='0'/></v:domain>"
            ),
            "PCI address 'nowhere'",
        ),
        (
            (
                "<v:domain xmlns:v='{}'><v:device host='0000:01:00.0' strategy='s' backend='b' "
                "pxb='1' root-port='2' smmu='0'><v:binding gdb='zz'/></v:device></v:domain>"
            ),
            "gdb is 'zz'",
        ),
        (
            (
                "<v:domain xmlns:v='{}'><v:device host='0000:01:00.0' strategy='s' backend='b' "
                "pxb='1' root-port='2' smmu='0'><v:binding outcome='lost'/></v:device></v:domain>"
            ),
            "outcome 'lost'",
        ),
    ],
)
def test_unknown_parts_are_refused(inside, words):
    with pytest.raises(DomainXmlError, match="reading the vmm-msi record of g") as caught:
        read_record(domain(inside.format(NAMESPACE)))
    assert words in str(caught.value)
