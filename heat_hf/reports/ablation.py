"""What a SuperNet's stabilizers are worth: the same SubNets after trainings with and without them (paper, Fig. 11)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heat_hf.encoders.checkpoints.key import read_key
from heat_hf.encoders.checkpoints.reading import told
from heat_hf.reports.ranks import RankRecord

KEY_NAME = "key.json"


@dataclass(frozen=True)
class Recipe:
    """One training of a SuperNet.

    Attributes:
        name: of its file or folder.
        key: of its search.
        accuracies: of its SubNets.
    """

    name: str
    key: Mapping[str, Any]
    accuracies: tuple[float, ...]

    @property
    def label(self) -> str:
        """Which stabilizers were left out."""
        without = self.key["supernet"].get("without", [])
        return f"without {', '.join(without)}".replace("_", " ") if without else "full recipe"

    @property
    def steps(self) -> int:
        """Of the training."""
        return int(self.key["supernet"]["max_steps"])


def recipe_of(record: RankRecord, name: str) -> Recipe | None:
    """Of a finished search; None if it measured no SubNets."""
    subnets = (record.fidelity or {}).get("subnets", [])
    return Recipe(name, record.key, tuple(accuracy for _, accuracy in subnets)) if subnets else None


def recipe_in(folder: Path) -> Recipe:
    """Of a search that was refused or interrupted after its SubNets had been measured, from OUTPUT.partial.

    Raises:
        ValueError: if it is no such folder, or no SubNet has been measured yet.
    """
    from heat_hf.search.journal import Journal
    from heat_hf.search.ranks.supernet_search import Measured

    key = read_key(folder / KEY_NAME)
    with told(folder, "is no unfinished search"):
        found = Journal(folder.with_suffix(""), key, overwrite=False).read(Measured)
    if not key.get("supernet") or not found:
        raise ValueError(f"{folder} has no measured SubNets: go on with its search")
    return Recipe(folder.name, key, tuple(measured.accuracy for (measured,) in found.values()))


def require_same_subnets(recipe: Recipe, other: Recipe) -> None:
    """Raise ValueError if two searches differ in more than the stabilizers, or not in these."""
    keys = [{**own.key, "supernet": {**own.key["supernet"], "without": None}} for own in (recipe, other)]
    different = [name for name in keys[0] | keys[1] if keys[0].get(name) != keys[1].get(name)]
    if different:
        raise ValueError(f"{other.name} was searched with another {different[0]} than {recipe.name}: only --without may differ")
    if len(recipe.accuracies) != len(other.accuracies):
        counts = len(other.accuracies), len(recipe.accuracies)
        raise ValueError(f"{other.name} has {counts[0]} measured SubNets, {recipe.name} {counts[1]}: go on with its search")


def ablation(recipes: Sequence[Recipe]) -> dict[str, tuple[float, ...]]:
    """Accuracies of the same SubNets by recipe, the full one first."""
    return {own.label: own.accuracies for own in sorted(recipes, key=lambda own: (own.label != "full recipe", own.label))}
