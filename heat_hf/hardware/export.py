"""A mapping and its accelerator as input files of Timeloop and AccelForge, to check a figure of ours with a tool of the field.

Both tools get our energies a word, so what is left to differ is the counting. Capacities count words here and bits there: all
words of a level are as wide as its widest.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import yaml

from heat_hf.hardware.gemm import REUSE, Gemm, Loop, MappedGemm
from heat_hf.hardware.lattice import divisors
from heat_hf.hardware.spec import TENSORS, Accelerator, Constraints, Level, Spatial

INDICES = {"inputs": "BMK", "weights": "BKN", "outputs": "BMN"}
Files = dict[str, str]
Fields = dict[str, Any]


def export_timeloop(cost: MappedGemm, accelerator: Accelerator, constraints: str | None = None) -> Files:
    """Files for Timeloop 3.0.3, by name: architecture, energies, product, mapping and mapping space.

    Args:
        cost: the mapping to write.
        accelerator: the hardware it was found for.
        constraints: name of one of its constraints, for Timeloop's own mapper; default: what the hardware can do.

    Raises:
        ValueError: for what Timeloop cannot express, or a name that is not known.
    """
    _check(cost, accelerator, "Timeloop")
    rules = Constraints({}) if constraints is None else accelerator.rules(constraints)
    inputs = "architecture.yaml ert.yaml problem.yaml"
    model = _note("Timeloop 3.0.3", f"timeloop-model {inputs} mapping.yaml", cost, accelerator)
    mapper = _note("Timeloop 3.0.3", f"timeloop-mapper {inputs} constraints.yaml mapper.yaml", cost, accelerator)
    search = {"optimization-metrics": ["edp"], "algorithm": "linear-pruned", "victory-condition": 0, "timeout": 0}
    return {
        "architecture.yaml": _dump(model, architecture={"version": 0.3, "subtree": [_containers(accelerator)]}),
        "ert.yaml": _dump(model, ERT={"version": 0.3, "tables": list(_energies(accelerator))}),
        "problem.yaml": _dump(model, problem=_problem(cost.gemm)),
        "mapping.yaml": _dump(model, mapping=list(_directives(cost, accelerator))),
        "constraints.yaml": _dump(mapper, architecture_constraints={"targets": list(_targets(cost.gemm, accelerator, rules))}),
        "mapper.yaml": _dump(mapper, mapper=search),
    }


def export_accelforge(cost: MappedGemm, accelerator: Accelerator) -> Files:
    """Files for AccelForge 1.0, by name: architecture, workload and mapping.

    Args:
        cost: the mapping to write.
        accelerator: the hardware it was found for.

    Raises:
        ValueError: for what AccelForge cannot express.
    """
    _check(cost, accelerator, "AccelForge")
    program = f"""import accelforge
    result = accelforge.Spec.from_yaml("arch.yaml", "workload.yaml", "mapping.yaml").evaluate_mapping()
    print(result.energy() * 1e12, result.latency() * {accelerator.clock_hz:g})"""
    note = _note("AccelForge 1.0.467", program, cost, accelerator)
    note += "# It also counts first reads of sums and the reads that drain them: outputs take a little more energy.\n"
    return {
        "arch.yaml": _dump(note, arch={"nodes": list(_components(cost.gemm, accelerator))}),
        "workload.yaml": _dump(note, workload=_workload(cost.gemm, accelerator)),
        "mapping.yaml": _dump(note, mapping={"nodes": _nodes(cost, accelerator)}),
    }


EXPORTS: dict[str, Callable[[MappedGemm, Accelerator, str | None], Files]] = {
    "timeloop": export_timeloop,
    "accelforge": lambda cost, accelerator, _: export_accelforge(cost, accelerator),  # its mapper takes no such constraints
}


def _check(cost: MappedGemm, accelerator: Accelerator, tool: str) -> None:
    if cost.gemm.on_chip or cost.gemm.reserved:
        raise ValueError(f"{tool} takes a product by itself; this one is a step of a fused cascade: cost it unfused")
    for name in (name for level in accelerator.levels for name in (level.name, *(spatial.name for spatial in level.spatial))):
        if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII):
            raise ValueError(f"{tool} needs names of letters, digits and _; {accelerator.name} has {name!r}")


def _note(tool: str, command: str, cost: MappedGemm, accelerator: Accelerator) -> str:
    text = f"""Input of {tool}: {cost.gemm} on {accelerator.name} ({accelerator.digest}). Run
    {command}
and compare with ours: {cost.energy_pJ:.6g} pJ, {cost.cycles} cycles, EDP {cost.edp:.6g} J*s.
"""
    if [counts["outputs"]["fills"] for counts in cost.accesses.values() if "outputs" in counts][-1]:
        text += "It counts a partial sum that leaves the accumulator as one word, we by its bits.\n"
    return "".join(f"# {line}\n" for line in text.replace("×", "x").splitlines())


class _Tagged(Fields):
    """A YAML mapping with a tag."""

    def __init__(self, tag: str, **fields: Any) -> None:
        super().__init__(fields)
        self.tag = f"!{tag}"


yaml.SafeDumper.add_representer(_Tagged, lambda dumper, data: dumper.represent_mapping(data.tag, data.items()))


def _dump(note: str, **document: Any) -> str:
    return note + yaml.safe_dump(document, sort_keys=False, default_flow_style=None, width=120)


def _bits(accelerator: Accelerator, level: Level) -> int:
    """Width of a level's words: of partial sums where they accumulate, else of the widest tensor."""
    accumulator = [other for other in accelerator.levels if "outputs" in other.keeps][-1]
    kept = (*level.keeps, "partial_sums") if level is accumulator else level.keeps
    return max(accelerator.word_bits[tensor] for tensor in kept)


def _dimensions(gemm: Gemm) -> str:
    return "MNKB" if gemm.batch > 1 else "MNK"


def _axes(level: Level) -> tuple[Spatial, list[Spatial]]:
    """The spatial dimensions of a fan-out, the first apart: Timeloop's X and Y."""
    first, *second = [spatial for spatial in level.spatial if spatial.size > 1]
    if len(second) > 1:
        raise ValueError(f"Timeloop has two spatial dimensions below a level, {level.name} has {1 + len(second)}")
    return first, second


def _containers(accelerator: Accelerator) -> Fields:
    """Timeloop's architecture: every fan-out is a container inside the one before."""
    root: Fields = {"name": "system", "local": []}
    node, across, down = root, 1, 1
    for level in accelerator.levels:
        rates = {"read_bandwidth": level.read, "write_bandwidth": level.write, "shared_bandwidth": level.shared}
        attributes: Fields = {"datawidth": _bits(accelerator, level), "block-size": 1, "meshX": across, "meshY": down}
        attributes |= {name: value for name, value in {"depth": level.words, **rates}.items() if value}
        kind = "SRAM" if level.words else "DRAM"  # only a DRAM may be without size
        node["local"].append({"name": level.name, "class": kind, "attributes": attributes})
        if level.fanout > 1:
            first, second = _axes(level)
            across, down = across * first.size, down * math.prod(spatial.size for spatial in second)
            name = "_".join(spatial.name for spatial in (first, *second))
            node["subtree"] = [{"name": f"{name}[0..{level.fanout - 1}]", "local": []}]
            node = node["subtree"][0]
    attributes = {"datawidth": accelerator.word_bits["inputs"], "meshX": across, "meshY": down}
    node["local"].append({"name": "MAC", "class": "intmac", "attributes": attributes})
    return root


def _energies(accelerator: Accelerator) -> Iterator[Fields]:
    for name, energy in [*((level.name, level.energy_pJ) for level in accelerator.levels), ("MAC", accelerator.mac_pJ)]:
        actions = ["mac_random"] if name == "MAC" else ["read", "write", "update"]
        yield {"name": name, "actions": [{"name": action, "arguments": {}, "energy": energy} for action in actions]}


def _spaces(gemm: Gemm) -> dict[str, str]:
    """Tensors and their dimensions, outputs last."""
    return {tensor.capitalize(): "".join(d for d in dims if d in _dimensions(gemm)) for tensor, dims in INDICES.items()}


def _problem(gemm: Gemm) -> Fields:
    spaces: list[Fields] = [{"name": name, "projection": [[[d]] for d in dims]} for name, dims in _spaces(gemm).items()]
    spaces[-1]["read-write"] = True
    shape = {"name": "gemm", "dimensions": list(_dimensions(gemm)), "data-spaces": spaces}
    return {"shape": shape, "instance": {d: gemm.extent(d) for d in _dimensions(gemm)}}


def _keeping(level: Level) -> Fields:
    sides = {"keep": level.keeps, "bypass": [tensor for tensor in TENSORS if tensor not in level.keeps]}
    return {"target": level.name, "type": "datatype"} | {k: [tensor.capitalize() for tensor in v] for k, v in sides.items()}


def _directives(cost: MappedGemm, accelerator: Accelerator) -> Iterator[Fields]:
    """Timeloop's mapping: permutations from the inside out, every dimension named, a fan-out's loops at the level above it."""
    for level in accelerator.levels:
        nest = [loop for loop in reversed(cost.loops) if loop.level == level.name and loop.extent > 1]
        kinds: list[tuple[str, list[Loop], Fields]] = [("temporal", [loop for loop in nest if not loop.spatial], {})]
        if level.fanout > 1:
            first, _ = _axes(level)
            unrolled = sorted((loop for loop in nest if loop.spatial), key=lambda loop: loop.spatial != first.name)
            kinds.append(("spatial", unrolled, {"split": sum(loop.spatial == first.name for loop in unrolled)}))
        for kind, loops, split in kinds:
            extents = {loop.dimension: loop.extent for loop in loops}
            if len(extents) < len(loops):
                raise ValueError(f"Timeloop has one {kind} loop a dimension at a level, {level.name} has more")
            extents |= {d: 1 for d in _dimensions(cost.gemm) if d not in extents}
            yield {"target": level.name, "type": kind, "factors": _equal(extents), "permutation": "".join(extents)} | split
        yield _keeping(level)


def _equal(factors: dict[str, int]) -> str:
    return " ".join(f"{dimension}={factor}" for dimension, factor in factors.items())


def _targets(gemm: Gemm, accelerator: Accelerator, rules: Constraints) -> Iterator[Fields]:
    """The mapping space for Timeloop's mapper."""
    dimensions = _dimensions(gemm)
    accumulator = max(i for i, level in enumerate(accelerator.levels) if "outputs" in level.keeps)
    for i, level in enumerate(accelerator.levels):
        yield _keeping(level)
        if level.fanout > 1:
            yield {"target": level.name, "type": "spatial"} | _unrolling(gemm, level, rules)
        allowed = set(rules.loops.get(level.name, dimensions))
        inside = {d for other in accelerator.levels[i + 1 : accumulator] for d in rules.loops.get(other.name, dimensions)}
        if not rules.spill and inside & set("MNB"):  # sums would be replaced before the loop over K has completed them
            allowed -= {"K"}
        fixed = {d: 1 for d in dimensions if d not in allowed}
        order = {} if rules.spill or i >= accumulator else {"permutation": "K"}  # innermost
        if fixed or order:
            yield {"target": level.name, "type": "temporal"} | ({"factors": _equal(fixed)} if fixed else {}) | order


def _unrolling(gemm: Gemm, level: Level, rules: Constraints) -> Fields:
    first, second = _axes(level)
    unrolled = dict.fromkeys(d for spatial in (first, *second) for d in spatial.unrolls)
    order = [d for d in dict.fromkeys([*unrolled, *"MNKB"]) if d in _dimensions(gemm)]
    factors = {d: 1 for d in order if d not in unrolled}
    for spatial in level.spatial:
        if spatial.name in rules.largest:
            dimension, *others = spatial.unrolls
            if others:
                raise ValueError(f"Timeloop cannot be held to the largest {spatial.name} of several dimensions")
            factors[dimension] = max(d for d in divisors(gemm.extent(dimension)) if d <= spatial.size)
    split = sum(d in first.unrolls for d in order)
    return ({"factors": _equal(factors)} if factors else {}) | {"permutation": "".join(order), "split": split}


def _components(gemm: Gemm, accelerator: Accelerator) -> Iterator[_Tagged]:
    """AccelForge's architecture: memories, and below those with a fan-out a container."""
    free = {"leak_power": 0, "area": 0}
    for level in accelerator.levels:
        bits = _bits(accelerator, level)
        rates = {"read": level.shared or level.read, "write": level.shared or level.write}
        speeds = {name: rate * accelerator.clock_hz if rate else "inf" for name, rate in rates.items()}
        yield _Tagged(
            "Memory",
            name=level.name,
            size=level.words * bits if level.words else "inf",
            bits_per_value={"All": bits},
            bits_per_action=bits,
            tensors={"keep": " | ".join(tensor.capitalize() for tensor in level.keeps)},
            total_latency=f"{'sum' if level.shared else 'max'}(a.n_calls / a.throughput for a in actions)",
            actions=[{"name": name, "energy": level.energy_pJ * 1e-12, "throughput": speeds[name]} for name in rates],
            **free,
        )
        axes: list[Fields] = [{"name": spatial.name, "fanout": spatial.size} for spatial in level.spatial]
        for axis, spatial in zip(axes, level.spatial, strict=True):
            rest = [d.lower() for d in _dimensions(gemm) if d not in spatial.unrolls]
            axis["loop_bounds"] = [{"expression": d, "operator": "==", "value": 1} for d in rest]
        if axes:
            yield _Tagged("Container", name=f"{level.name}_copies", spatial=axes)
    compute = {"name": "compute", "energy": accelerator.mac_pJ * 1e-12, "throughput": accelerator.clock_hz}
    yield _Tagged("Compute", name="MAC", actions=[compute], **free)


def _workload(gemm: Gemm, accelerator: Accelerator) -> Fields:
    accesses: list[Fields] = [{"name": name, "projection": list(dims.lower())} for name, dims in _spaces(gemm).items()]
    accesses[-1]["output"] = True
    bounds = {d.lower(): f"0 <= {d.lower()} < {gemm.extent(d)}" for d in _dimensions(gemm)}
    widths = {tensor.capitalize(): accelerator.word_bits[tensor] for tensor in TENSORS}
    einsums = [{"name": "Gemm", "tensor_accesses": accesses}]
    return {"iteration_space_shape": bounds, "bits_per_value": widths, "einsums": einsums}


def _nodes(cost: MappedGemm, accelerator: Accelerator) -> list[_Tagged]:
    """AccelForge's mapping. A tensor stays during loops that its storage is outside of, so storage moves outwards past them.

    Spatial loops come before the temporal ones of their level, which storage further in may then move past too.
    """
    nodes: list[_Tagged] = []
    shape = {dimension: cost.gemm.extent(dimension) for dimension in "MNKB"}
    for level in accelerator.levels:
        for tensor in level.keeps:
            nodes.insert(_outside(nodes, tensor), _Tagged("Storage", tensors=[tensor.capitalize()], component=level.name))
        loops = [loop for loop in cost.loops if loop.level == level.name and loop.extent > 1]
        for loop in sorted(loops, key=lambda loop: loop.spatial is None):
            shape[loop.dimension] //= loop.extent
            tile: Fields = {"rank_variable": loop.dimension.lower(), "tile_shape": shape[loop.dimension]}
            copies = {"name": loop.spatial, "component": f"{level.name}_copies"} if loop.spatial else {}
            nodes.append(_Tagged("Spatial" if loop.spatial else "Temporal", **tile, **copies))
    return [*nodes, _Tagged("Compute", einsum="Gemm", component="MAC")]


def _outside(nodes: Sequence[_Tagged], tensor: str) -> int:
    """Where storage of a tensor goes: outside the innermost temporal loops, as long as they are over its reuse dimension."""
    position = len(nodes)
    for i, node in reversed(list(enumerate(nodes))):
        if node.tag == "!Temporal" and node["rank_variable"] == REUSE[tensor].lower():
            position = i
        elif node.tag == "!Temporal" or node.get("tensors") == [tensor.capitalize()]:
            break
    return position
