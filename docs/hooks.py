"""What is made while pages are built: the command line's reference, from the parsers, and links from pictures to themselves."""

from __future__ import annotations

import argparse
import re
from typing import Any


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put every verb's help where a page asks for it, and open pictures that are touched in full size, as on a phone."""
    markdown = re.sub(r"(?m)^!\[([^\]]*)\]\((\S+)\)$", r"[![\1](\2)](\2)", markdown)
    return markdown.replace("<!-- cli -->", _reference()) if "<!-- cli -->" in markdown else markdown


def _reference() -> str:
    from heat_hf.cli import VERBS, build_parser

    parser = build_parser()
    verbs = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction)).choices
    return "\n\n".join(part for verb in VERBS for part in _sections(verb, verbs[verb]))


def _sections(name: str, parser: argparse.ArgumentParser) -> list[str]:
    """A verb, and the verbs under it."""
    under = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if under:
        return [part for own in under for verb, inner in own.choices.items() for part in _sections(f"{name} {verb}", inner)]
    parser.prog = f"heat-hf {name}"
    parser.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=96)
    return [f"## `{name}`", f"```text\n{parser.format_help().rstrip()}\n```"]
