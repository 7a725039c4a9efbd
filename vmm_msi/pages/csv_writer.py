"""The rows of a report as CSV (RFC 4180), for programs and spreadsheets."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

from vmm_msi.terminal import printable

if TYPE_CHECKING:
    from vmm_msi.pages.blocks import Table

# What makes a spreadsheet take a cell for a formula:
# https://owasp.org/www-community/attacks/CSV_Injection
_FORMULA = ("=", "+", "-", "@")


def to_csv(table: Table) -> str:
    """Return a table as CSV with a head; lines end in CR LF.

    A cell that a spreadsheet would take for a formula gets an apostrophe before it.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(table.head)
    writer.writerows([_cell(cell.text) for cell in row] for row in table.rows)
    return text.getvalue()


def _cell(text: str) -> str:
    shown = printable(text)
    return f"'{shown}" if shown.lstrip().startswith(_FORMULA) else shown
