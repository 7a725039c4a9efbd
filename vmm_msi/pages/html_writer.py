"""A report as one HTML file: no request leaves it, and it is readable without its script.

The templates are Jinja2's, with autoescaping; what is not printable is shown as
``vmm_msi.terminal.printable`` does, so that text from outside cannot reorder a line either.
"""

from __future__ import annotations

import base64
import hashlib
import math
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from vmm_msi.terminal import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jinja2 import Environment
    from markupsafe import Markup

    from vmm_msi.pages.blocks import Page
    from vmm_msi.pages.drawing import Arrow

_FILES = "vmm_msi.pages.html"
#: Length and half the width of an arrow's head.
_HEAD = 8
_HALF = 4


@cache
def environment() -> Environment:
    """Return the environment of the templates."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    def shown(value: object) -> object:
        return value if isinstance(value, (Markup, int, float)) else printable(value)

    loaded = Environment(
        loader=PackageLoader("vmm_msi.pages", "html"),
        autoescape=True,
        finalize=shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    loaded.filters["lines"] = _lines
    loaded.filters["n"] = _number
    loaded.filters["arrow"] = _arrow
    loaded.globals["drawing_style"] = _file("colours.css") + _file("drawing.css")
    return loaded


def _file(name: str) -> str:
    return resources.files(_FILES).joinpath(name).read_text("utf-8")


def _lines(lines: Iterable[str]) -> Markup:
    from markupsafe import Markup

    return Markup("\n").join(printable(line) for line in lines)


def _number(value: float) -> str:
    return f"{value:g}" if value == int(value) else f"{value:.1f}"


def _arrow(arrow: Arrow) -> str:
    """Return the path of an arrow: its line, and its head unless nothing arrives."""
    line = f"M{_number(arrow.x1)} {_number(arrow.y1)}L{_number(arrow.x2)} {_number(arrow.y2)}"
    if "unreached" in arrow.style:
        return line
    angle = math.atan2(arrow.y2 - arrow.y1, arrow.x2 - arrow.x1)
    ends = (
        (
            arrow.x2 - _HEAD * math.cos(angle) + side * _HALF * math.sin(angle),
            arrow.y2 - _HEAD * math.sin(angle) - side * _HALF * math.cos(angle),
        )
        for side in (1, -1)
    )
    (ax, ay), (bx, by) = ends
    tip = f"L{_number(arrow.x2)} {_number(arrow.y2)}L"
    return f"{line}M{_number(ax)} {_number(ay)}{tip}{_number(bx)} {_number(by)}"


def to_html(page: Page) -> str:
    """Return a report as an HTML document."""
    style = _file("colours.css") + _file("page.css") + _file("drawing.css")
    script = _file("page.js")
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            page=page,
            style=style,
            script=script,
            policy=f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; "
            "base-uri 'none'; form-action 'none'",
        )
    )


def _hash(text: str) -> str:
    """Return the source expression of a policy for an inline element (W3C CSP 3, section 2.3.1)."""
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"
