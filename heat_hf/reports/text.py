"""Tables as plain text."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Iterable, Sequence

WIDTH = 180  # where there is no terminal to ask


def text_table(
    columns: Sequence[str],
    groups: Iterable[Iterable[Sequence[str]]],
    title: str | None = None,
    left: Sequence[int] = (0,),
    width: int | None = None,
) -> str:
    """A table with rules between groups of rows.

    Args:
        columns: headings.
        groups: rows of cells; a short row is filled up.
        title: line above the table.
        left: positions of left-aligned columns; the others are right-aligned.
        width: most characters in a line; default: the terminal's, or 180 where standard output is none.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=None if title is None else Text(title))  # a name in brackets is no markup
    for position, heading in enumerate(columns):
        table.add_column(Text(heading), justify="left" if position in left else "right", overflow="fold")
    for rows in groups:
        for row in rows:
            table.add_row(*map(Text, row))
        table.add_section()
    text = io.StringIO()
    Console(file=text, width=width or line_width()).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def line_width() -> int:
    """Characters in a line of the terminal, or `WIDTH` where standard output is none."""
    return shutil.get_terminal_size((WIDTH, 24)).columns if sys.stdout.isatty() else WIDTH
