"""Pages as Markdown, CSV and HTML: what is readable, and what text from outside cannot do."""

from __future__ import annotations

import csv
import io

import pytest
from lxml import html

from vmm_msi.pages.blocks import (
    Cell,
    Code,
    Filter,
    Heading,
    Items,
    Page,
    Picture,
    Section,
    Table,
    Terms,
    Text,
    Tone,
    Walk,
    Walks,
    cells,
)
from vmm_msi.pages.csv_writer import to_csv
from vmm_msi.pages.drawing import Box, Drawing, Label, fitted, to_svg
from vmm_msi.pages.formats import write_page
from vmm_msi.pages.html_writer import to_html
from vmm_msi.pages.markdown_writer import to_markdown

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> & \u202eevil\x1b[31m"


def page(*blocks, **more):
    return Page("title", blocks, **more)


def markdown(*blocks):
    text = to_markdown(page(*blocks))
    assert text.startswith("# title\n\n")
    return text.removeprefix("# title\n\n")


class TestMarkdown:
    def test_table_that_fits_is_aligned(self):
        table = Table("what", ("name", "n"), (cells("a", 1), cells("longer", 22)))
        assert markdown(table) == (
            "what\n\n| name   | n   |\n| ------ | --- |\n| a      | 1   |\n| longer | 22  |\n"
        )

    def test_wide_table_becomes_several_with_the_names_of_rows(self):
        table = Table("", ("name", *"bcd"), (cells("a", "b" * 30, "c" * 30, "d" * 30),))
        text = markdown(table)
        assert text.count("| name |") == 2
        assert max(map(len, text.splitlines())) <= 80
        assert all(letter * 30 in text for letter in "bcd")

    def test_cell_that_is_too_long_makes_a_list(self):
        table = Table("", ("name", "reason"), (cells("a", "word " * 40), cells("b", "")))
        text = markdown(table)
        assert text.startswith("- **a**\n  - reason: word word")
        assert "- **b**\n" in text
        assert max(map(len, text.splitlines())) <= 80

    def test_long_rows_with_one_name_share_an_item(self):
        rows = (cells("a", "x", "word " * 30), cells("a", "y", "word " * 30))
        text = markdown(Table("", ("name", "device", "why"), rows))
        assert text.count("- **a**") == 1
        assert "\n  - device: x; why: word" in text
        assert "\n  - device: y; why: word" in text

    def test_empty_table_says_so(self):
        assert markdown(Table("rows", ("a",), ())) == "rows\n\nNone.\n"

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("a|b", r"a\|b"),
            ("`x` *y* [z](u)", r"\`x\` \*y\* \[z\](u)"),
            ("<b>", r"\<b>"),
            ("&lt;", r"\&lt;"),
            ("snake_case _em_", r"snake_case \_em\_"),
            ("# no heading", r"\# no heading"),
            ("- no item", r"\- no item"),
            ("--option", "--option"),
            ("---", r"\---"),
            ("a -> b", "a -> b"),
            ("> no quotation", r"\> no quotation"),
            ("1. no item", r"1\. no item"),
            ("@name", r"\@name"),
            ("\u202e\x1b", r"\\u202e\\x1b"),
        ],
    )
    def test_text_stays_text(self, text, expected):
        assert markdown(Text(text)) == f"{expected}\n"

    def test_long_heading_is_wrapped(self):
        lines = to_markdown(Page("name " * 30, ())).splitlines()
        assert max(map(len, lines)) == 80
        assert lines[2:] == ["=" * 80]
        assert markdown(Heading("name " * 30)).endswith("\n" + "-" * 80 + "\n")

    def test_wrapped_line_starts_no_list(self):
        text = markdown(Text("x" * 79 + " - y " + "z" * 70 + " 12. w"))
        assert text.splitlines()[1].startswith(r"\- y")

    def test_fence_is_longer_than_those_in_it(self):
        assert markdown(Code(("```", "x"))) == "````\n```\nx\n````\n"

    def test_other_blocks(self):
        walk = Walks("paths", "hint", (Walk("w", "t", "<svg/>", ()),))
        inner = (Items(("one", "two")), Terms((("name", "value"),)), walk)
        text = markdown(Filter("f", ("m",)), Section("part", inner), Picture("", "c", ("->",)))
        assert text == "## part\n\n- one\n- two\n\n- **name**: value\n\n```\n->\n```\n"

    def test_provenance_is_at_the_end(self):
        text = to_markdown(page(Heading("h"), provenance={"host": "x_y"}))
        assert text.endswith("## h\n\n---\n\n- **host**: x_y\n")


class TestCsv:
    def test_rows_come_back(self):
        table = Table("", ("a", "b"), (cells('say "x"', "1,2"), cells("line\nbreak", "")))
        rows = list(csv.reader(io.StringIO(to_csv(table), newline="")))
        assert rows == [["a", "b"], ['say "x"', "1,2"], [r"line\nbreak", ""]]

    @pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", " =1", "\t=1"])
    def test_formula_is_text(self, text):
        written = to_csv(Table("", ("a",), (cells(text),)))
        cell = list(csv.reader(io.StringIO(written, newline="")))[1][0]
        assert not cell.lstrip().startswith(tuple("=+-@"))

    def test_page_without_rows_has_no_csv(self):
        with pytest.raises(ValueError, match="no format csv"):
            write_page(page(), "csv")


class TestHtml:
    def test_hostile_text_stays_text_everywhere(self):
        svg = to_svg(Drawing(10, 10, HOSTILE, (Label(0, 0, HOSTILE),)), alone=False)
        walk = Walk("id", HOSTILE, svg, (), HOSTILE, HOSTILE)
        blocks = (
            Text(HOSTILE),
            Heading(HOSTILE),
            Items((HOSTILE,)),
            Code((HOSTILE, "second"), HOSTILE),
            Terms(((HOSTILE, HOSTILE),)),
            Table(HOSTILE, (HOSTILE,), ((Cell(HOSTILE, Tone.BAD, HOSTILE),),), filterable=True),
            Section(HOSTILE, (Text(HOSTILE),), marks=(HOSTILE,), folded=True),
            Filter(HOSTILE, (HOSTILE,)),
            Walks(HOSTILE, HOSTILE, (walk,)),
        )
        text = to_html(page(*blocks, provenance={HOSTILE: HOSTILE}))
        tree = html.document_fromstring(text)
        assert len(tree.findall(".//script")) == 1
        assert not tree.findall(".//img")
        assert "\u202e" not in text
        assert "\x1b" not in text
        assert tree.find(".//pre").text_content().endswith("\nsecond")

    def test_policy_admits_this_style_and_script_alone(self):
        tree = html.document_fromstring(to_html(page()))
        policy = tree.xpath("//meta[@http-equiv='Content-Security-Policy']/@content")[0]
        assert policy.startswith("default-src 'none'; style-src 'sha256-")
        assert "unsafe" not in policy
        assert not tree.xpath("//@style | //@src | //@href[not(starts-with(., '#'))]")

    def test_cell_leads_to_its_walk(self):
        walk = Walk("w1", "t", "<svg></svg>", (), "r", "c")
        table = Table("t", ("a", "b"), ((Cell("r"), Cell("x", Tone.GOOD, "w1")),))
        tree = html.document_fromstring(to_html(page(table, Walks("c", "h", (walk,)))))
        assert tree.xpath("//td/a/@href") == ["#w1"]
        assert tree.get_element_by_id("w1").tag == "article"


class TestDrawing:
    @pytest.mark.parametrize(
        ("text", "width", "expected"), [("abc", 73, "abc"), ("0000:01:00.0", 51.1, "000…0.0")]
    )
    def test_text_fits(self, text, width, expected):
        assert fitted(text, width) == expected

    def test_alone_it_is_a_document_with_its_style(self):
        drawing = Drawing(10, 10, "a & b", (Box(0, 0, 5, 5, ("x<y",)),))
        from lxml import etree

        root = etree.fromstring(to_svg(drawing, alone=True))
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert root[0].text == "a & b"
        assert "--paper" in root[1].text
        assert "x<y" in "".join(root.itertext())
