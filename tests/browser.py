"""A report as a reader has it: opened in Debian's Chromium, where a page may not misbehave.

https://playwright.dev/python/docs/api/class-browsercontext has the events.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from contextlib import contextmanager

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

#: Widths in CSS pixels: a laptop, and a phone or a page enlarged four times (WCAG 1.4.10).
WIDE, NARROW = 1280, 320

#: WCAG 2.2 asks for targets of 24 pixels; axe-core checks them on request only.
AXE_OPTIONS = {"resultTypes": ["violations"], "rules": {"target-size": {"enabled": True}}}

#: Waits until a frame is drawn.
FIRST_FRAME = "() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))"


@contextmanager
def chromium():
    """Start Debian's Chromium without a window.

    :raise FileNotFoundError: a program is not installed.
    """
    for program in ("chromium", "pdfinfo", "pdftotext"):
        if shutil.which(program) is None:
            raise FileNotFoundError(program)
    # Chromium's sandbox refuses root.
    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=options, chromium_sandbox=not options
        )
        try:
            yield browser
        finally:
            browser.close()


class Reader:
    """One reader with one report open.

    :param scripts: whether the reader's browser runs scripts.
    :ivar page: Playwright's page.
    :ivar seconds: how long the page took to open.
    :ivar complaints: what the page did that no report may do.
    """

    def __init__(self, browser, path, *, scripts=True, width=WIDE, scheme="light"):
        self.url = path.resolve().as_uri()
        self.complaints = []
        self._context = browser.new_context(
            java_script_enabled=scripts,
            viewport={"width": width, "height": 800},
            color_scheme=scheme,
            accept_downloads=False,
        )
        self._context.on("request", self._on_request)
        self._context.on("console", lambda message: self._complain(message.type, message.text))
        self._context.on("weberror", lambda error: self._complain("error", error.error))
        self._context.on("dialog", self._on_dialog)
        self.page = self._context.new_page()
        self.page.on("popup", lambda popup: self._complain("popup", popup.url))
        self.page.on("download", lambda download: self._complain("download", download.url))
        # Requests are counted, but do not leave this machine.
        self._context.route(lambda url: url != self.url, lambda route: route.abort())
        start = time.perf_counter()
        self.page.goto(self.url)
        if scripts:
            self.page.evaluate(FIRST_FRAME)
        self.seconds = time.perf_counter() - start

    def close(self):
        """Close the page and wait for what it still does."""
        self._context.close()

    def _complain(self, kind, text):
        self.complaints.append(f"{kind}: {text}")

    def _on_request(self, request):
        if request.url.partition("#")[0] != self.url:
            self._complain("request", request.url)

    def _on_dialog(self, dialog):
        self._complain("dialog", dialog.message)
        dialog.dismiss()

    def violations(self):
        """Return the accessibility violations of the page as it is, one line each."""
        response = Axe().run(self.page, options=AXE_OPTIONS).response
        return [
            f"{violation['id']}: {violation['help']}: {node['html'][:200]}"
            for violation in response["violations"]
            for node in violation["nodes"]
        ]

    def views(self):
        """Show the page in each color scheme and width in turn; yield their names."""
        for scheme in ("light", "dark"):
            for width in (WIDE, NARROW):
                self.page.emulate_media(color_scheme=scheme)
                self.page.set_viewport_size({"width": width, "height": 800})
                yield f"{scheme}-{width}"

    def overflow(self):
        """Return how many pixels of the page are beside the window."""
        return self.page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )

    def printed(self, path):
        """Print the page to a PDF file; return the number of sheets and the text on them."""
        self.page.pdf(path=path, format="A4", prefer_css_page_size=True)
        facts = dict(
            line.partition(":")[::2] for line in _output("pdfinfo", str(path)).splitlines()
        )
        return int(facts["Pages"]), _output("pdftotext", "-layout", str(path), "-")

    def picture(self, path):
        """Take a picture of the whole page."""
        self.page.screenshot(path=path, full_page=True)


def _output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
