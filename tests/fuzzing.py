"""What the fuzzes share: their counts, printed, and held against what the documentation says of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

LIMITS = Path(__file__).parents[1] / "docs" / "limits.md"


def require_told(sentence: str, counts: Counter[str]) -> None:
    """Print a fuzz's counts, and make sure that the page on limits has them.

    Args:
        sentence: of the page, with the counts' names in braces.
        counts: by name; "total" is their sum.
    """
    told = sentence.format(**{name: f"{count:,}" for name, count in (*counts.items(), ("total", counts.total()))})
    print(f"\n{told}")
    assert told in " ".join(LIMITS.read_text().split()), f"docs/limits.md does not say: {told}"
