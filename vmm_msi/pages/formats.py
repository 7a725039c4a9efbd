"""Write a page in a format by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmm_msi.pages.blocks import Page


def write_page(page: Page, name: str) -> str:
    """Return a page as ``html``, ``markdown`` or ``csv``.

    :raise ValueError: for CSV of a page without rows, or another format.
    """
    if name == "html":
        from vmm_msi.pages.html_writer import to_html

        return to_html(page)
    if name == "markdown":
        from vmm_msi.pages.markdown_writer import to_markdown

        return to_markdown(page)
    if name == "csv" and page.data is not None:
        from vmm_msi.pages.csv_writer import to_csv

        return to_csv(page.data)
    raise ValueError(f"{page.title}: no format {name}")
