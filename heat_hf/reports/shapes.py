"""A cost table as JSON, as text, and as a page to explore."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from heat_hf.formats.size import MatrixSize
from heat_hf.hardware import units
from heat_hf.reports.page import fill
from heat_hf.reports.text import text_table
from heat_hf.search.shapes.pareto import front, select
from heat_hf.search.shapes.table import Candidate, CostTable, SizeInfo

ANY = "any"  # the selection among all formats
DENSE = "dense"
# Told apart by readers with any colour vision (Okabe and Ito); the last three are for formats from elsewhere.
COLOURS = {"low_rank": "#0072B2", "cp": "#D55E00", "tucker": "#009E73", "ttm": "#CC79A7"}
_SPARE = ("#E69F00", "#56B4E9", "#7F7F7F")
MEASURES: dict[str, Callable[[Candidate], float]] = {
    "error": lambda c: c.error,
    "ratio": lambda c: c.ratio,
    "energy": lambda c: units.ENERGY.of(c.energy_pJ or 0.0),
    "latency": lambda c: units.TIME.of(c.seconds),
    "EDP": lambda c: units.EDP.of(c.edp),
    "MACs": lambda c: c.macs,
    "parameters": lambda c: c.parameters,
}


def format_colours(table: CostTable) -> dict[str, str]:
    """Colour of every format of a table, the same in all pictures."""
    present = {candidate.format for candidate in table.candidates}.union(*(info.spaces for info in table.sizes.values()))
    others = sorted(present - set(COLOURS))
    spare = {name: _SPARE[i % len(_SPARE)] for i, name in enumerate(others)}
    return {name: colour for name, colour in {**COLOURS, **spare}.items() if name in present}


def selections(table: CostTable, size: str) -> dict[str, Candidate]:
    """The setting `select` takes of each format without a budget, and under "any" of all formats.

    Raises:
        ValueError: if the table has no such size.
    """
    everything, info = table.of(size), table.sizes[size]
    present = {candidate.format for candidate in everything}
    selected = {name: select(table.of(size, name), info) for name in format_colours(table) if name in present}
    return {**selected, ANY: select(everything, info)}


def table_data(table: CostTable) -> dict[str, Any]:
    """A table as JSON: its key figures and, for every size, the search space and the selected settings.

    Energies are in pJ, times in s, EDPs in J·s.
    """
    return {
        **_header(table),
        "options": dict(table.options),
        "sizes": {size: _size_data(table, size, info) for size, info in table.sizes.items()},
    }


def _header(table: CostTable) -> dict[str, Any]:
    return {
        "model": table.model,
        "accelerator": table.accelerator,
        "digest": table.accelerator_digest,
        "tokens": table.tokens,
    }


def _size_data(table: CostTable, size: str, info: SizeInfo) -> dict[str, Any]:
    everything = table.of(size)
    return {
        "matrices": info.matrices,
        "sampled": list(info.sampled),
        DENSE: {"energy_pJ": info.dense_energy_pJ, "seconds": info.dense_seconds, "edp_J_s": info.dense_edp},
        "candidates": len(everything),
        "front": len(front(everything)),
        "spaces": {format: dict(space) for format, space in info.spaces.items()},
        "selected": {name: _setting_data(candidate, info) for name, candidate in selections(table, size).items()},
    }


def _setting_data(candidate: Candidate, info: SizeInfo) -> dict[str, Any]:
    return {
        "format": candidate.format,
        "shape": candidate.shape,
        "rank": list(candidate.rank),
        "error": candidate.error,
        "ratio": candidate.ratio,
        "macs": candidate.macs,
        "energy_pJ": candidate.energy_pJ,
        "seconds": candidate.seconds,
        "edp_J_s": candidate.edp,
        "edp_of_dense": candidate.edp / info.dense_edp,
    }


def table_text(table: CostTable) -> str:
    """The same as text: what was searched, and what is selected."""
    title = f"{table.model}, {table.tokens} tokens, {table.accelerator} ({table.accelerator_digest})"
    return "\n\n".join([title, _space_table(table), _selected_table(table)])


def _space_table(table: CostTable) -> str:
    groups = []
    for size, info in table.sizes.items():
        counts = Counter(candidate.format for candidate in table.of(size))
        best = Counter(candidate.format for candidate in front(table.of(size)))
        rows = []
        for format, space in searched_spaces(table, size).items():
            dropped = ", ".join(f"{count:,} {reason}" for reason, count in space["dropped"].items())
            settings, shapes = f"{space['unpruned_settings']:,}", f"{space['shapes']:,}"
            rows.append((size, format, settings, shapes, dropped, f"{counts[format]:,}", f"{best[format]:,}"))
        total = sum(space["unpruned_settings"] for space in info.spaces.values())
        shapes = sum(space["shapes"] for space in info.spaces.values())
        rows.append((size, "all", f"{total:,}", f"{shapes:,}", "", f"{counts.total():,}", f"{best.total():,}"))
        groups.append(rows)
    head = ("size", "format", "unpruned settings", "shapes tried", "dropped, and why", "candidates", "on the front")
    return text_table(head, groups, "search space", left=(0, 1, 4))


def searched_spaces(table: CostTable, size: str) -> dict[str, Mapping[str, Any]]:
    """What was searched of a size, by format, in the order of `format_colours`: a file has it in another."""
    spaces = table.sizes[size].spaces
    return {format: spaces[format] for format in format_colours(table) if format in spaces}


def _selected_table(table: CostTable) -> str:
    groups = []
    for size, info in table.sizes.items():
        rows = [(size, DENSE, "", "", "0", "1", *_cost_cells(dense_candidate(table, size), info))]
        for name, candidate in selections(table, size).items():
            format = f"{ANY}: {candidate.format}" if name == ANY else name
            error, ratio = f"{candidate.error:.4f}", f"{candidate.ratio:.4f}"
            rows.append((size, format, candidate.shape, rank_text(candidate), error, ratio, *_cost_cells(candidate, info)))
        groups.append(rows)
    head = ("size", "format", "shape", "rank", "error", "ratio", "MACs (M)", f"energy ({units.ENERGY.name})",
            f"latency ({units.TIME.name})", f"EDP ({units.EDP.name})", "EDP / dense")  # fmt: skip
    return text_table(head, groups, "selected settings, without a budget", left=(0, 1, 2, 3))


def dense_candidate(table: CostTable, size: str) -> Candidate:
    """The dense layer as if it were a candidate. Its MACs are those of the product."""
    parameters = MatrixSize.parse(size).elements
    info = table.sizes[size]
    macs = parameters * table.tokens
    return Candidate(size, DENSE, "", (), 0.0, parameters, macs, info.dense_energy_pJ, info.dense_seconds)


def _cost_cells(candidate: Candidate, info: SizeInfo) -> tuple[str, ...]:
    return (
        f"{candidate.macs * 1e-6:,.2f}",
        f"{MEASURES['energy'](candidate):,.3f}",
        f"{MEASURES['latency'](candidate):,.3f}",
        f"{MEASURES['EDP'](candidate):,.4g}",
        f"{candidate.edp / info.dense_edp:.3f}",
    )


def rank_text(candidate: Candidate) -> str:
    """Ranks, separated by commas."""
    return ", ".join(map(str, candidate.rank))


def page(table: CostTable) -> str:
    """A page to explore the table in: one HTML file that needs nothing else, with all candidates in it."""
    return fill("shapes.html", _page_data(table))


def _page_data(table: CostTable) -> dict[str, Any]:
    """All candidates by size, as the template's script reads them."""
    colours = [[name, colour] for name, colour in format_colours(table).items()]
    read = {"energy": units.ENERGY, "latency": units.TIME, "edp": units.EDP}
    named = {name: {"name": unit.name, "factor": unit.factor} for name, unit in read.items()}
    return {**_header(table), "units": named, "formats": colours, "sizes": [_page_size(table, size) for size in table.sizes]}


def _page_size(table: CostTable, size: str) -> dict[str, Any]:
    names = {name: i for i, name in enumerate(format_colours(table))}
    on_front, selected = set(map(id, front(table.of(size)))), selections(table, size)
    chosen = {id(candidate) for name, candidate in selected.items() if name != ANY}
    shapes = {shape: i for i, shape in enumerate(dict.fromkeys(candidate.shape for candidate in table.of(size)))}
    rows = []
    for c in table.of(size):
        marks = (id(c) in on_front) + 2 * (id(c) in chosen) + 4 * (c is selected[ANY])
        rows.append([names[c.format], shapes[c.shape], list(c.rank), c.error, c.parameters, c.macs, c.energy_pJ, c.seconds,
                     marks])  # fmt: skip
    dense = dense_candidate(table, size)
    dense_figures = {"parameters": dense.parameters, "macs": dense.macs, "energy_pJ": dense.energy_pJ, "seconds": dense.seconds}
    return {"size": size, "matrices": table.sizes[size].matrices, DENSE: dense_figures, "shapes": list(shapes), "rows": rows}
