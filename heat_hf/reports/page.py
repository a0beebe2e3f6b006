"""Pages of one HTML file each that need nothing else: a template, what all templates share, and data as JSON."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

SHARED = {
    "__HEAD__": "head.html",
    "__STYLE__": "base.css",
    "__SCRIPT__": "base.js",
    "__CHARTS_STYLE__": "charts.css",
    "__CHARTS_SCRIPT__": "charts.js",
}


def fill(template: str, data: dict[str, Any]) -> str:
    """A page.

    Args:
        template: name of a file in `heat_hf/reports/pages`.
        data: what its script reads; finite numbers only.

    Raises:
        ValueError: if a number is not finite.
    """
    pages = files(__package__).joinpath("pages")
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    # Inside a script element, "<" could end it or open a comment. Elsewhere than in JSON strings there is none.
    escaped = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    page = pages.joinpath(template).read_text(encoding="utf-8")
    for placeholder, name in SHARED.items():
        page = page.replace(placeholder, pages.joinpath(name).read_text(encoding="utf-8").rstrip())
    return page.replace("__DATA__", escaped)
