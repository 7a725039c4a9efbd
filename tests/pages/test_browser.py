"""The checks of pages in a browser, on pages that fail them."""

from __future__ import annotations

import pytest
from browser import NARROW, Reader

GOOD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>A report</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>:root { color-scheme: light dark; }</style>
</head>
<body><main><h1>A report</h1><p>Every MSI is delivered.</p></main></body>
</html>
"""


def with_body(body):
    return GOOD.replace("<p>Every MSI is delivered.</p>", body)


def test_a_good_page_passes_every_check(read, pictures):
    reader = read(GOOD)
    for view in reader.views():
        assert reader.violations() == []
        assert reader.overflow() == 0
        reader.picture(pictures / f"hand-made-{view}.png")
        assert (pictures / f"hand-made-{view}.png").stat().st_size > 1000
    sheets, text = reader.printed(pictures / "hand-made.pdf")
    assert sheets == 1
    assert "Every MSI is delivered." in text


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("<script>console.warn('slow')</script>", "warning: slow"),
        ("<script>console.log('here')</script>", "log: here"),
        ("<script>undefinedName()</script>", "undefinedName is not defined"),
        ('<img alt="" src="https://example.com/a.png">', "request: https://example.com/a.png"),
        ('<img alt="" src="beside.png">', "beside.png"),
        ("<script>fetch('http://127.0.0.1:9/')</script>", "request: http://127.0.0.1:9/"),
        ("<style>@import url(http://127.0.0.1:8/a.css);</style>", "request: http://127.0.0.1:8/"),
        ("<script>alert('hello')</script>", "dialog: hello"),
        ("<script>location = 'https://example.com/'</script>", "request: https://example.com/"),
        ("<script>new WebSocket('ws://127.0.0.1:8/')</script>", "ws://127.0.0.1:8/"),
    ],
)
def test_what_no_page_may_do_is_a_complaint(browser, tmp_path, body, complaint):
    path = tmp_path / "bad.html"
    path.write_text(with_body(body))
    reader = Reader(browser, path)
    reader.page.wait_for_timeout(200)
    reader.close()
    assert complaint in "\n".join(reader.complaints)


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        ('<img src="data:,">', "image-alt"),
        ('<p style="color: #999; background: #aaa">faint</p>', "color-contrast"),
        ("<input>", "label"),
        ("<h4>too deep</h4>", "heading-order"),
        (
            '<a href="#a" style="font-size: 4px">a</a><a href="#b" style="font-size: 4px">b</a>',
            "target-size",
        ),
    ],
)
def test_an_inaccessible_page_has_violations(browser, tmp_path, body, rule):
    path = tmp_path / "bad.html"
    path.write_text(with_body(body))
    reader = Reader(browser, path)
    violations = reader.violations()
    reader.close()
    assert [line for line in violations if line.startswith(f"{rule}: ")]


def test_a_page_wider_than_a_phone_is_noticed(read):
    reader = read(with_body('<p style="width: 400px">wide</p>'), width=NARROW)
    assert reader.overflow() > 0


def test_a_reader_without_scripts_runs_none(read):
    body = "<p>with</p><script>document.querySelector('p').textContent = 'changed'</script>"
    assert read(with_body(body)).page.inner_text("p") == "changed"
    assert read(with_body(body), scripts=False).page.inner_text("p") == "with"
