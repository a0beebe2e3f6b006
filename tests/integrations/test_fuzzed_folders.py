"""Saved folders that are damaged by seeds: each gives what the sound one gives, or is refused in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import fuzzed_folders
import pytest
from fuzzing import require_told

EXPECTED = ("right", "refused", "another")


def damaged_folders(place: Path, count: int) -> Counter[str]:
    """Load as many folders and give them to the command line, and count what came of it; a finding fails, and is shown."""
    done = subprocess.run(
        [sys.executable, fuzzed_folders.__file__, place, "0", str(count)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == 2 * count
    findings = [line for line in found if not set(EXPECTED) & set(line)]
    assert not findings, findings
    return Counter(next(kind for kind in EXPECTED if kind in line) for line in found)


def test_a_few_damaged_folders(tmp_path: Path) -> None:
    counts = damaged_folders(tmp_path, 12)
    assert min(counts["right"], counts["refused"]) > 2


@pytest.mark.slow
def test_damaged_folders(tmp_path: Path) -> None:
    counts = damaged_folders(tmp_path, 320)
    require_told(
        "of {total} questions to 320 damaged folders, {right} were answered as by the sound folder, {refused} refused in one "
        "line, and {another} answered as by another folder that is sound",
        counts,
    )
