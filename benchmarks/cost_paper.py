"""The paper's Table 1: how low the EDP of BERT-base could be at the paper's numbers of factor parameters.

It is possible EDP at equal parameters, and says nothing of accuracy. First within each of the paper's formats, one setting for
each matrix size; then with every structure there is here, and two settings of each kind mixed over the blocks.
"""

from __future__ import annotations

import itertools
import statistics
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from heat_hf import TensorSetting, TensorShape
from heat_hf.formats import get_format
from heat_hf.formats.size import MatrixSize
from heat_hf.hardware import load_accelerator
from heat_hf.hardware.analytic import AnalyticModel
from heat_hf.hardware.cascade import Cascade
from heat_hf.hardware.mapper import Mapper

BERT_SIZES = {"768x768": 48, "3072x768": 12, "768x3072": 12}  # matrices of BERT-base's blocks
# Table 1 of the paper: million parameters of the factors (the model's less 24.6 M), and the EDP in µJ·s of its HEAT rows.
PAPER = {
    "cp": [(24.3, 5.99), (34.5, 9.01), (49.6, 14.5)],
    "tucker": [(17.5, 4.91), (26.4, 7.45), (39.0, 10.4)],
    "ttm": [(17.0, 25.06), (21.8, 28.93), (30.1, 32.72)],
}
SIMBA = load_accelerator("simba-l")
BLOCKS, TOKENS = 12, 384
KINDS = {
    "best": lambda _: True,
    "no mode of extent 1": lambda shape: 1 not in shape.modes,
    "uniform modes": lambda shape: max(shape.modes) < 3 * min(shape.modes),
}
PAPER_SHAPES = {
    "768x768": ["768:768", "24x32:768", "12x64:768", "24x32:24x32"],
    "3072x768": ["3072:768", "48x64:768", "3072:24x32", "48x64:24x32"],
    "768x3072": ["768:3072", "24x32:3072", "768:48x64", "24x32:48x64"],
}


def paper_table() -> dict:
    """The least EDP of BERT-base at 384 tokens with at least the paper's factor parameters, one setting for each size."""
    mapper = Mapper(SIMBA)
    options = {name: {size: _options(name, size, mapper) for size in BERT_SIZES} for name in PAPER}
    rows = []
    for name, stated in PAPER.items():
        for parameters, paper in stated:
            row = {"format": name, "parameters_M": parameters, "paper": paper, "settings": {}}
            for kind in KINDS if name == "ttm" else ("best",):
                edp, chosen = _cheapest(options[name], parameters * 1e6, kind)
                row["settings"][kind] = {
                    "edp": edp * 1e6,
                    "parameters_M": sum(BERT_SIZES[size] * s.parameters for size, s in chosen.items()) / 1e6,
                    "settings": {size: f"{s.shape} rank {'×'.join(map(str, s.rank))}" for size, s in chosen.items()},
                }
            row["ratio"] = row["settings"]["best"]["edp"] / paper
            rows.append(row)
    return {"paper": rows, "paper_geometric_mean": statistics.geometric_mean(row["ratio"] for row in rows)}


def _options(name: str, size: str, mapper: Mapper) -> list[tuple[TensorSetting, Cascade]]:
    """Settings of one matrix size, with ranks in multiples of 16 where they go beyond 64; uniform ranks in Tucker."""
    rows, columns = MatrixSize.parse(size)
    codec, found = get_format(name), []
    # CP of four modes needs ranks in the thousands for as many parameters, and costs more than the dense matrix.
    pairs = [f"{rows // m}x{m}:{columns // m}x{m}" for m in (2, 4, 8, 16)]
    shapes = {
        "cp": PAPER_SHAPES[size][:3],
        "tucker": PAPER_SHAPES[size],
        "ttm": [f"{rows}x1:1x{columns}", *pairs, PAPER_SHAPES[size][3]],
    }
    for text in shapes[name]:
        shape = TensorShape.parse(text, rows, columns)
        most = max(codec.max_rank(shape))
        for rank in range(16, most + 1, 16) if most > 64 else range(1, most + 1):
            setting = TensorSetting(name, shape, codec.clip_rank(shape, codec.uniform_rank(shape, rank)))
            if setting.ratio < 1:
                found.append((setting, AnalyticModel(mapper).cascade_of(setting, 384)))
    return found


def _cheapest(options: dict, parameters: float, kind: str) -> tuple[float, dict[str, TensorSetting]]:
    """One setting for each size, with shapes of one of `KINDS`."""
    lists = {size: [(s, c) for s, c in found if KINDS[kind](s.shape)] for size, found in options.items()}
    sums = np.zeros((3, 1, 1, 1))
    for axis, (size, found) in enumerate(lists.items(), start=1):
        values = np.array([[s.parameters, c.energy_pJ, c.seconds] for s, c in found]).T * BERT_SIZES[size]
        sums = sums + np.expand_dims(values, [other for other in (1, 2, 3) if other != axis])
    edp = np.where(sums[0] >= parameters, sums[1] * sums[2] * 1e-12, np.inf)
    place = np.unravel_index(int(edp.argmin()), edp.shape)
    return float(edp[place]), {size: found[i][0] for (size, found), i in zip(lists.items(), place, strict=True)}


UNIT = 16  # ranks and widths are multiples of it


@dataclass(frozen=True)
class Choice:
    """What the matrices of a block's attention, or of its feed-forward network, may get.

    Attributes:
        label: what it is.
        figures: parameters, energy in J and seconds.
    """

    label: str
    figures: tuple[float, float, float]

    def __add__(self, other: Choice) -> Choice:
        label = self.label if self.label == other.label else f"{self.label} + {other.label}"
        a, b = self.figures, other.figures
        return Choice(label, (a[0] + b[0], a[1] + b[1], a[2] + b[2]))


class Structures:
    """Choices at 384 tokens."""

    def __init__(self) -> None:
        self.costs = AnalyticModel(Mapper(SIMBA))

    def of(self, label: str, what: TensorSetting | MatrixSize, times: int = 1) -> Choice:
        """Some equal matrices."""
        cost = self.costs.cascade_of(what, TOKENS)
        parameters = what.elements if isinstance(what, MatrixSize) else what.parameters
        return Choice(label, (times * parameters, times * cost.energy_pJ * 1e-12, times * cost.seconds))

    def matrix(self, size: MatrixSize, times: int = 1) -> list[Choice]:
        """Of one matrix by itself: dense, low rank, pivoted."""
        found = [self.of("dense", size, times)]
        for name, most in (("low_rank", size.elements / sum(size)), ("pivoted", min(size))):
            for rank in range(UNIT, int(most), UNIT):
                setting = TensorSetting(name, TensorShape.matrix(*size), (rank,))
                found.append(self.of(f"{name.replace('_', ' ')} {rank}", setting, times))
        return found

    def attention(self, hidden: int) -> list[Choice]:
        """Of a block's four matrices: Q, K and V alike, and the one behind them."""
        size = MatrixSize(hidden, hidden)
        first = self.matrix(size, 3)
        shape, most = TensorShape.matrix(*size), 3 * size.elements / (hidden + 3 * hidden)
        for rank in range(UNIT, int(most), UNIT):
            settings = (TensorSetting(name, shape, (rank,)) for name in ("shared_basis", "on_basis"))
            basis, others = (
                self.of(f"shared basis {rank}", setting, times) for setting, times in zip(settings, (1, 2), strict=True)
            )
            first.append(basis + others)
        return [one + other for one, other in itertools.product(first, self.matrix(size))]

    def feed_forward(self, hidden: int, inner: int) -> list[Choice]:
        """Of a block's two matrices: each by itself, or both with fewer neurons between them."""
        sizes = {"fewer_outputs": MatrixSize(inner, hidden), "fewer_inputs": MatrixSize(hidden, inner)}
        alone = [self.matrix(size) for size in sizes.values()]
        found = [one + other for one, other in itertools.product(*alone)]
        for width in range(UNIT, inner, UNIT):
            pair = [TensorSetting(name, TensorShape.matrix(*size), (width,)) for name, size in sizes.items()]
            first, second = (self.of(f"{width} neurons", setting) for setting in pair)
            found.append(first + second)
        return found


def outermost(choices: list[Choice]) -> list[Choice]:
    """Those that some price of energy and of parameters, in seconds, makes the cheapest: of others mixtures need none."""
    figures = np.array([choice.figures for choice in choices])
    figures = figures / figures.max(0)
    kept: set[int] = set()
    for energy in np.geomspace(0.05, 20, 25):
        cost = energy * figures[:, 1] + figures[:, 2]
        prices = np.geomspace(0.01, 100, 400)
        kept.update((cost[:, None] - figures[:, :1] * prices).argmin(0).tolist())
    return [choices[i] for i in sorted(kept)]


def mixtures(choices: list[Choice]) -> tuple[NDArray[np.float64], list[str]]:
    """Figures and labels of one choice for all blocks, and of two mixed over them."""
    found = {f"{BLOCKS} × {choice.label}": BLOCKS * np.array(choice.figures) for choice in choices}
    for one, other in itertools.combinations(choices, 2):
        for count in range(1, BLOCKS):
            label = f"{count} × {one.label}, {BLOCKS - count} × {other.label}"
            found[label] = count * np.array(one.figures) + (BLOCKS - count) * np.array(other.figures)
    return np.array(list(found.values())), list(found)


def structures_table() -> dict:
    """The same with two settings for attention and two for feed-forward networks, of the structures, mixed over the blocks."""
    structures = Structures()
    attention, feed_forward = structures.attention(768), structures.feed_forward(768, 3072)
    (first, first_labels), (second, second_labels) = (mixtures(outermost(choices)) for choices in (attention, feed_forward))
    rows = []
    for name, stated in PAPER.items():
        for parameters, paper in stated:
            best, places = np.inf, (0, 0)
            for i, figures in enumerate(first):
                total = figures + second
                edp = np.where(total[:, 0] >= parameters * 1e6, total[:, 1] * total[:, 2], np.inf)
                j = int(edp.argmin())
                if edp[j] < best:
                    best, places = edp[j], (i, j)
            i, j = places
            row = {"format": name, "parameters_M": parameters, "paper": paper, "edp": float(best) * 1e6}
            row["ratio"] = row["edp"] / paper
            row["attention"], row["feed_forward"] = first_labels[i], second_labels[j]
            row["reached_M"] = float(first[i, 0] + second[j, 0]) / 1e6
            rows.append(row)
    return {"structures": rows, "structures_geometric_mean": statistics.geometric_mean(row["ratio"] for row in rows)}
