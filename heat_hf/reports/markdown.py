"""Names and values as Markdown that shows them as they are, whatever they are made of."""

from __future__ import annotations

import re

_SPECIAL = re.compile(r"([\\`*\[\]<>|~$#]|(?<!\w)_|_(?!\w))")  # within a word, an underscore is one


def plain(text: object) -> str:
    """Text in a line or in a cell of a table: one line, none of its characters is markup or HTML."""
    return _SPECIAL.sub(r"\\\1", _line(text).replace("&", "&amp;"))


def code(text: object) -> str:
    """Text as code in a line."""
    return f"`{_line(text).replace('`', chr(39))}`"


def _line(text: object) -> str:
    return " ".join(str(text).split())
