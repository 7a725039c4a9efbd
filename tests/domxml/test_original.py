"""Unedited parts are printed as they were read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from vmm_msi.domxml import elements
from vmm_msi.domxml.libvirt_domain import DomainXml

HEAD = "<domain type='kvm'><name>g</name>"
TAIL = "<devices/></domain>"

#: Ways of writing that a parser loses.
WRITINGS = {
    "quotes": f'<domain a="1" b=\'2\'><name>g</name>{TAIL}',
    "references in text": f"{HEAD}<title>it&apos;s &quot;&#65;&quot; &#x3e;&gt;></title>{TAIL}",
    "references in attributes": f"{HEAD}<x a='&apos;&quot;&#10;&#9;&lt;' b=\">\"/>{TAIL}",
    "line break in an attribute": f"{HEAD}<x a='1\n2'/>{TAIL}",
    "white space in tags": f"{HEAD}<x  a = '1'\n\tb='2' ></x ><y /><z></z>{TAIL}",
    "CDATA": f"{HEAD}<title><![CDATA[<b a='1'>]]> and <![CDATA[]]></title>{TAIL}",
    "CDATA between pieces": f"{HEAD}<metadata><![CDATA[ ]]><m/>&#32;</metadata>{TAIL}",
    "comments": f"<!-- a --><?p q?>{HEAD}<!-- <name> ' --><?p <x a=\"?>{TAIL}<!-- b -->",
    "line ends": f"{HEAD}\r\n  <x/>\r\n{TAIL}\r\n",
    "no line end": f"{HEAD}{TAIL}",
    "declaration": f'<?xml version="1.0" encoding="UTF-8"?>\n{HEAD}{TAIL}\n',
    "byte order mark": f"\ufeff{HEAD}{TAIL}",
    "characters": f"{HEAD}<title>Gast \u00e4\u20ac\U0001f600\u00a0</title>{TAIL}",
    "namespaces": f"<domain xmlns:q='urn:q' q:a='1'><name>g</name><q:x xmlns='urn:d'/>{TAIL}",
    "empty devices": f"{HEAD}<devices></devices></domain>",
    "text around devices": f"{HEAD}<devices>a &gt; b<disk/>c<disk/>d</devices></domain>",
    "white space that is none": f"{HEAD}<devices>\u00a0<disk/>\n \u2003<disk/></devices></domain>",
}  # fmt: skip


def parse(text):
    return DomainXml.parse(text, "here")


@pytest.mark.parametrize("text", WRITINGS.values(), ids=WRITINGS)
def test_an_unedited_document_is_printed_as_it_was_read(text):
    assert str(parse(text)) == text
    assert str(parse(text.encode())) == text
    assert str(parse(text).copy().copy()) == text


@pytest.mark.parametrize("text", WRITINGS.values(), ids=WRITINGS)
def test_removing_an_inserted_element_restores_the_text(text):
    now = parse(text)
    for place in (now.devices, now.root):
        for index in range(len(place) + 1):
            previous = place[index - 1] if index else None
            new = elements.build("new", {"a": "'\"<&\n"}, elements.build("inner", {}))
            elements.insert_after(place, previous, new)
            printed = str(now)
            again = parse(printed)
            assert etree.tostring(again.root, method="c14n") == etree.tostring(
                now.root, method="c14n"
            )
            assert str(now.copy()) == printed
            elements.remove(next(again.root.iter("new")))
            # The information whether it had an end tag is lost.
            assert str(again).replace("<devices/>", "<devices></devices>") == text.replace(
                "<devices/>", "<devices></devices>"
            )
            elements.remove(new)
            assert str(now) == text


def test_an_empty_element_loses_its_end_tag_once_printed_with_a_child():
    now = parse(WRITINGS["empty devices"])
    elements.insert_after(now.devices, None, elements.build("new", {}))
    again = parse(str(now))
    elements.remove(again.devices[0])
    assert str(again) == f"{HEAD}<devices/></domain>"


def test_only_edited_parts_are_serialised():
    now = parse(
        "<domain  type = \"kvm\" xmlns:q='urn:q' q:a='1' id='3'>\n"
        '<name>it&apos;s</name><devices a="1" >\n'
        '<disk  a="1"><x b="2"/></disk><disk  a="1"><x b="2"/></disk></devices></domain>'
    )
    now.root.set("type", "t'")
    now.root.set("new", "<")
    del now.root.attrib["id"]
    now.root.set("{urn:q}a", "2")
    now.devices[1][0].set("b", "3")
    assert str(now) == (
        "<domain  type = \"t'\" xmlns:q='urn:q' q:a='2' new='&lt;'>\n"
        '<name>it&apos;s</name><devices a="1" >\n'
        "<disk  a=\"1\"><x b=\"2\"/></disk><disk a='1'><x b='3'/></disk></devices></domain>"
    )


def test_new_elements_are_quoted_as_libvirt_quotes():
    now = parse(f"{HEAD}{TAIL}")
    record = etree.Element("{urn:v}a", {"b": "'\""}, nsmap={"v": "urn:v"})
    record.append(etree.Comment(" c "))
    elements.insert_after(now.root, now.root[0], elements.build("metadata", {}, record))
    elements.insert_after(now.devices, None, elements.build("disk", {"a": "'\""}))
    metadata = '<metadata><v:a xmlns:v="urn:v" b="\'&quot;"><!-- c --></v:a></metadata>'
    devices = "<devices><disk a='&apos;\"'/></devices>"
    assert str(now) == f"{HEAD}{metadata}{devices}</domain>"


def test_a_declared_prefix_is_used():
    now = parse(f"<domain xmlns:w='urn:v' xml:lang='en'><name>g</name>{TAIL}")
    new = etree.Element("{urn:v}a", {"{urn:v}b": "1", "{urn:u}c": "2"}, nsmap={"v": "urn:v"})
    elements.insert_after(now.devices, None, new)
    again = parse(str(now))
    assert etree.tostring(again.root, method="c14n") == etree.tostring(now.root, method="c14n")


def test_a_declaration_of_another_encoding_is_removed():
    text = "<?xml version='1.0' encoding='ISO-8859-1'?>\n<!-- a -->" + HEAD + TAIL
    assert str(parse(text)) == f"<!-- a -->{HEAD}{TAIL}"


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"])))
def test_inserted_values_are_read_back(value):
    now = parse(f"{HEAD}{TAIL}")
    try:
        new = elements.build("x", {"a": value}, etree.Element("y"))
        new[0].text = value
    except ValueError:
        return  # not an XML character
    elements.insert_after(now.devices, None, new)
    again = parse(str(now))
    assert (again.devices[0].get("a"), again.devices[0][0].text or "") == (value, value)
