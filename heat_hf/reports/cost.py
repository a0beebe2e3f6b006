"""Costs as JSON, as tables and as pictures: where energy and cycles go."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heat_hf.hardware import units
from heat_hf.hardware.cascade import Cascade, CascadeStep, join
from heat_hf.hardware.mapper import Mapper
from heat_hf.hardware.spec import TENSORS, Accelerator
from heat_hf.reports.text import text_table

if TYPE_CHECKING:
    from heat_hf.encoders.cost import CostedLayer, CostedModel
    from heat_hf.encoders.flow import FusedModel


def describe_mapper(mapper: Mapper) -> dict[str, Any]:
    """What figures hold for: the accelerator with its digest, the constraints, the objective."""
    accelerator = mapper.accelerator
    return {
        "accelerator": accelerator.name,
        "digest": accelerator.digest,
        "technology": accelerator.technology,
        "constraints": mapper.constraints,
        "objective": mapper.objective,
    }


def totals(cost: Cascade) -> dict[str, float]:
    """Energy, cycles, time, EDP and utilization."""
    return {
        "energy_pJ": cost.energy_pJ,
        "cycles": cost.cycles,
        "seconds": cost.seconds,
        "edp_J_s": cost.edp,
        "utilization": cost.utilization,
    }


def cost_data(cost: Cascade) -> dict[str, Any]:
    """A cascade as JSON: totals, accesses, energy by level, and every step with its mapping."""
    return {
        **totals(cost),
        "accesses": cost.accesses,
        "energy_by_level_pJ": cost.energy_by_level_pJ,
        "steps": [_step_data(step) for step in cost.steps],
        "mapping": [_mapping_data(step) for step in cost.steps],
    }


def _mapping_data(step: CascadeStep) -> dict[str, Any]:
    return {"step": step.name, "loops": [loop._asdict() for loop in step.mapped.loops]}


def _step_data(step: CascadeStep) -> dict[str, Any]:
    mapped, gemm = step.mapped, step.mapped.gemm
    return {
        "step": step.name,
        "batch": gemm.batch,
        "M": gemm.M,
        "N": gemm.N,
        "K": gemm.K,
        "repeats": step.repeats,
        "inputs_from": step.inputs_from,
        "weights_from": step.weights_from,
        "outputs_to": step.outputs_to,
        "energy_pJ": mapped.energy_pJ,
        "cycles": mapped.cycles,
        "utilization": mapped.utilization,
        "bottleneck": mapped.bottleneck,
    }


def model_data(model: CostedModel) -> dict[str, Any]:
    """A model as JSON: totals over all layers, and every layer."""
    total, dense = model.total, model.dense
    layers = [
        {"layer": layer.name, "what": layer.what, "size": layer.size, "repeats": layer.repeats, **totals(layer.cost)}
        for layer in model.layers
    ]
    # Layers that differ only in rank have steps of the same name.
    mappings = {(step.name, step.mapped.gemm): step for layer in model.layers for step in layer.cost.steps}
    return {
        "model": model.name,
        "sequence_length": model.sequence_length,
        "batch_size": model.batch_size,
        **totals(total),
        "dense": totals(dense),
        "accesses": total.accesses,
        "energy_by_level_pJ": total.energy_by_level_pJ,
        "layers": layers,
        "mapping": [{"product": str(step.mapped.gemm), **_mapping_data(step)} for step in mappings.values()],
    }


def fused_data(model: FusedModel) -> dict[str, Any]:
    """A model of fused blocks as JSON: totals, and of every kind of block what is on chip, in how many tiles, and its steps."""
    kinds = [
        {
            "blocks": kind.count,
            "on_chip": sorted(kind.schedule.kept),
            "tiles": dict(kind.schedule.tiles),
            **totals(kind.cascade),
            "steps": [_step_data(step) for step in kind.cascade.steps],
        }
        for kind in model.kinds
    ]
    return {**totals(model.total), "hidden_state_on_chip": model.carried, "kinds": kinds}


def groups(model: CostedModel) -> dict[str, tuple[int, CostedLayer]]:
    """Layers that differ in nothing but the number of their block, with how often they run."""
    groups_by_key: dict[str, tuple[int, CostedLayer]] = {}
    for layer in model.layers:
        key = f"{re.sub(r'[.][0-9]+[.]', '.*.', layer.name)} {layer.what}"
        while key in groups_by_key and groups_by_key[key][1].cost.edp != layer.cost.edp:
            key += "′"
        groups_by_key[key] = (groups_by_key.get(key, (0, layer))[0] + layer.repeats, layer)
    return groups_by_key


def level_table(cost: Cascade, accelerator: Accelerator) -> str:
    """Energy by level and tensor."""
    by_level, accesses = cost.energy_by_level_pJ, cost.accesses
    price = {level.name: level.energy_pJ for level in accelerator.levels}
    rows = []
    for level in [*price, "MAC"]:
        tensors = accesses.get(level, {})
        cells = [price.get(level, 0.0) * sum(tensors.get(tensor, {}).values()) for tensor in TENSORS]
        energy = by_level.get(level, 0.0)
        rows.append((level, *map(_micro, cells), _micro(energy), f"{energy / cost.energy_pJ:.1%}"))
    slow = ", ".join(f"{level} {cycles / cost.cycles:.0%}" for level, cycles in cost.cycles_by_bottleneck.items())
    head = ("level", *TENSORS, units.ENERGY.name, "of all")
    return text_table(head, [rows], "energy by level") + f"\ncycles: {slow}"


def step_table(cost: Cascade, title: str = "by step") -> str:
    """Energy and cycles by step."""
    rows = []
    for step in cost.steps:
        mapped = step.mapped
        repeats = f" ×{step.repeats}" if step.repeats > 1 else ""
        rows.append(
            (step.name, f"{mapped.gemm}{repeats}", f"{step.inputs_from} · {step.weights_from} → {step.outputs_to}",
             _micro(step.repeats * mapped.energy_pJ), f"{step.repeats * mapped.cycles:,}", f"{mapped.utilization:.3f}",
             mapped.bottleneck)
        )  # fmt: skip
    head = ("step", "M×N×K", "inputs · weights → outputs", units.ENERGY.name, "cycles", "utilization", "limited by")
    return text_table(head, [rows], title, left=(0, 2))


def mapping_text(cost: Cascade) -> str:
    """The loop nests, outermost loop first."""
    return "\n\n".join(f"{step.name}\n{step.mapped}" for step in cost.steps)


def layer_table(model: CostedModel) -> str:
    """Energy and time by tensor; layers alike in all blocks are one row."""
    total = model.total
    rows = []
    for key, (count, layer) in groups(model).items():
        energy, seconds = count * layer.cost.energy_pJ, count * layer.cost.seconds
        rows.append(
            (key.rsplit(" ", 1)[0], layer.what, layer.size, str(count), _micro(energy), f"{energy / total.energy_pJ:.1%}",
             f"{units.TIME.of(seconds):,.1f}", f"{seconds / total.seconds:.1%}", f"{layer.cost.utilization:.3f}",
             f"{layer.cost.edp / layer.dense.edp:.3f}" if layer.dense.edp else "")
        )  # fmt: skip
    head = ("tensor", "format", "size", "runs", units.ENERGY.name, "of all", units.TIME.name, "of all", "utilization",
            "EDP of dense")  # fmt: skip
    title = f"{model.name}, {model.batch_size} × {model.sequence_length} tokens"
    return text_table(head, [rows], title, left=(0, 1))


def total_line(name: str, cost: Cascade) -> str:
    """Totals in one line."""
    energy, time, edp = units.ENERGY.of(cost.energy_pJ), units.TIME.of(cost.seconds), units.EDP.of(cost.edp)
    return (
        f"{name}: {energy:.4g} {units.ENERGY.name}, {time:.4g} {units.TIME.name} ({cost.cycles:,} cycles), "
        f"EDP {edp:.4g} {units.EDP.name}, utilization {cost.utilization:.3f}"
    )


def _micro(picojoules: float) -> str:
    return f"{units.ENERGY.of(picojoules):,.2f}"


def model_parts(model: CostedModel) -> dict[str, Cascade]:
    """Groups of layers as cascades, for `plot_cost`."""
    return {f"{count} × {key.rsplit(' ', 1)[0]}": join([layer.cost] * count) for key, (count, layer) in groups(model).items()}


def step_parts(cost: Cascade) -> dict[str, Cascade]:
    """Steps as cascades, for `plot_cost`."""
    return {f"{i}. {step.name}": replace(cost, steps=(step,)) for i, step in enumerate(cost.steps, start=1)}


def plot_cost(parts: Mapping[str, Cascade], accelerator: Accelerator, title: str, path: str | Path) -> None:
    """Draw energy by level and cycles by what limits them, one bar a part.

    Args:
        parts: what is compared, by name.
        accelerator: the hardware, for the order of levels.
        title: heading.
        path: where to write; the suffix says the format, as .png or .svg.

    Raises:
        ValueError: for a suffix matplotlib does not write.
    """
    from matplotlib.figure import Figure

    names = list(parts)
    levels = [*(level.name for level in accelerator.levels), "MAC"]
    figure = Figure(figsize=(13, 1.8 + 0.38 * len(names)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    energies = {level: [units.ENERGY.of(parts[name].energy_by_level_pJ.get(level, 0.0)) for name in names] for level in levels}
    cycles = {level: [parts[name].cycles_by_bottleneck.get(level, 0) * 1e-3 for name in names] for level in levels}
    _bars(left, names, energies, f"energy ({units.ENERGY.name})")
    _bars(right, names, cycles, "cycles (thousands), by what limits them")
    left.invert_yaxis()
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(levels), frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


def _bars(axes: Any, names: Sequence[str], values: Mapping[str, Sequence[float]], label: str) -> None:  # noqa: ANN401
    from matplotlib import colormaps

    start = [0.0] * len(names)
    for i, (level, widths) in enumerate(values.items()):
        axes.barh(range(len(names)), widths, left=start, label=level, color=colormaps["tab10"](i))
        start = [a + b for a, b in zip(start, widths, strict=True)]
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel(label)
    axes.spines[["top", "right"]].set_visible(False)
