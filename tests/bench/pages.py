"""Time the pages of reports about 10,000 devices: writing them, and opening them in Chromium.

``make bench`` runs it. The aims are 5 MB and 2 seconds to open; every figure is a median. The peer,
opened alternately, is a page of the same size that is preformatted text.
"""

from __future__ import annotations

import html
import statistics
import tempfile
import time
from pathlib import Path

from browser import FIRST_FRAME, Reader, chromium
from large_host import large_case
from scenarios import Device, Sample

from vmm_msi.doctor.rules import examine
from vmm_msi.library.comparison import compare
from vmm_msi.pages.html_writer import to_html
from vmm_msi.report import compare_page, doctor_page, topology_page
from vmm_msi.report.columns import columns

COUNT, ROUNDS = 10_000, 5


def comparison(folder: Path):
    """Compare two strategies for a guest with ``COUNT`` devices."""
    devices = tuple(
        Device(
            f"0000:{1 + n // 256:02x}:{n // 8 % 32:02x}.{n % 8}", n % 2, giova=0xFFFF0000 - n * 4096
        )
        for n in range(COUNT)
    )
    path = folder / "many.toml"
    path.write_text(Sample(devices).toml())
    return compare(scenario=path, strategies=("identity", "direct"))


def main() -> None:
    case = large_case(COUNT)
    findings = examine(case)
    rows = [
        ["report", "devices", "MB", "write s", "open s", "of its size as text", "open all tables s"]
    ]
    with tempfile.TemporaryDirectory() as name, chromium() as browser:
        folder = Path(name)
        compared = comparison(folder)
        pages = {
            "compare": lambda: compare_page.to_page(compared.scenario, compared.results, {}),
            "doctor": lambda: doctor_page.to_page(case, None, findings, {}),
            "topology show": lambda: topology_page.to_page(case.host, None, {}),
        }
        for report, page in pages.items():
            start = time.perf_counter()
            text = to_html(page())
            written = time.perf_counter() - start
            path = folder / "report.html"
            path.write_text(text)
            peer = folder / "text.html"
            head = "<!doctype html><html lang=en><title>text</title><pre>"
            peer.write_text(head + html.escape(text)[: len(text)])
            pairs = [(_open(browser, path), _open(browser, peer)) for _ in range(ROUNDS)]
            times = (
                written,
                statistics.median(own for (own, _unfolded), _peer in pairs),
                statistics.median(own / other for (own, _), (other, _unfolded) in pairs),
                statistics.median(unfolded for (_own, unfolded), _peer in pairs),
            )
            size = f"{len(text.encode()) / 1e6:.2f}"
            rows.append([report, f"{COUNT:,}", size, *(f"{value:.2f}" for value in times)])
    print(*columns(rows), sep="\n")


def _open(browser, path: Path) -> tuple[float, float]:
    """Return the seconds until the page is seen, and until all that is folded is."""
    reader = Reader(browser, path)
    start = time.perf_counter()
    reader.page.evaluate("document.querySelectorAll('details').forEach((part) => part.open = true)")
    reader.page.evaluate(FIRST_FRAME)
    unfolded = time.perf_counter() - start
    reader.close()
    return reader.seconds, unfolded


if __name__ == "__main__":
    main()
