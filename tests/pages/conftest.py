"""Fixtures that open a report in a real browser."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from browser import Reader, chromium
from conftest import unavailable


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium, running for all tests of a file."""
    try:
        with chromium() as running:
            yield running
    except FileNotFoundError as error:
        unavailable(f"{error} is not installed; run scripts/setup test")


@pytest.fixture
def read(browser, tmp_path):
    """Open HTML as a file; at the end of the test fail on what the page did.

    A page makes no request, no dialog and no other window, and it leaves the console empty.
    """
    readers = []

    def open_html(html, **options):
        path = tmp_path / f"report-{len(readers)}.html"
        path.write_text(html, encoding="utf-8")
        readers.append(Reader(browser, path, **options))
        return readers[-1]

    yield open_html
    for reader in readers:
        reader.close()
    assert [complaint for reader in readers for complaint in reader.complaints] == []


@pytest.fixture
def pictures(tmp_path):
    """Where pictures of pages go: $VMM_MSI_PICTURES for a person to look at."""
    folder = Path(os.environ.get("VMM_MSI_PICTURES", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
