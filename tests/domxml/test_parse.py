import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from vmm_msi.domxml.parse import MAX_BYTES, parse, serialise
from vmm_msi.errors import DomainXmlError

BOMB = "<!DOCTYPE a [<!ENTITY a 'aaaa'>" + "".join(
    f"<!ENTITY {entity} '{('&' + last + ';') * 10}'>"
    for last, entity in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "line 1"),
        ("<a><b></a>", "line 1: "),
        ("<a>\n<b x=1/></a>", "line 2"),
        ("<a>&nbsp;</a>", "nbsp"),
        ("<!DOCTYPE a><a/>", "document type declaration is refused"),
        (
            "<?xml version='1.0'?>\n<!-- x --> <!DOCTYPE a SYSTEM 'http://[::1]/x'><a/>",
            "line 2: a doc",
        ),
        ("<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><a>&x;</a>", "is refused"),
        (BOMB + "]><a>&i;</a>", "is refused"),
        (b"\xff\xfe<\0a\0/\0>\0", "not UTF-8"),
        ("<a x='\ud800'/>", "not UTF-8"),
        ("<a>" * 3000 + "</a>" * 3000, "line 1: "),
        ("<a/>" + " " * 10_000_000, "too many"),
        ("<a>" + "x" * MAX_BYTES + "</a>", "too many"),
    ],
)
def test_refused(text, words):
    with pytest.raises(DomainXmlError, match="reading XML from here") as caught:
        parse(text, "here")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_declared_encoding_is_ignored():
    text = "<?xml version='1.0' encoding='UTF-7'?><a>+ADwAIQ-DOCTYPE</a>"
    assert parse(text, "here").text == "+ADwAIQ-DOCTYPE"


@pytest.mark.parametrize(
    "text",
    [
        '<!-- a -->\n<a b=\'x"y\' c="it\'s" d=\'a&gt;b\'><!-- k="2" -->t="5"</a>\n<?p q="1"?>\n',
        '<a><![CDATA[x="1"<b c="d">]]></a>\n',
        "<a b='=\"x\"' c='&#10;'/>\n",
        "<a xmlns:q='urn:q' q:b='1'>\n  <q:c/>\n\n</a>\n",
    ],
)
def test_text_is_unchanged(text):
    assert serialise(parse(text, "here")) == text


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"])))
def test_values_are_read_back(value):
    try:
        root = etree.Element("a", b=value)
        root.text = value
    except ValueError:
        return  # not an XML character
    again = parse(serialise(root), "here")
    assert (again.get("b"), again.text or "") == (value, value)
