"""Exports, read back: the hardware, the product and the mapping they describe are ours."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import yaml

from heat_hf.hardware import load_accelerator
from heat_hf.hardware.export import EXPORTS, export_accelforge, export_timeloop
from heat_hf.hardware.gemm import Gemm, Loop, MappedGemm
from heat_hf.hardware.mapper import Mapper
from heat_hf.hardware.mapping import evaluate
from heat_hf.hardware.spec import TENSORS, Accelerator, Constraints, Level, Spatial, shipped_accelerators

SIMBA_L = load_accelerator("simba-l")
GEMM = Gemm(64, 128, 96)
BATCHED = Gemm(32, 64, 64, batch=6)


@cache
def best(name: str, gemm: Gemm) -> tuple[MappedGemm, Accelerator]:
    accelerator = load_accelerator(name)
    return Mapper(accelerator).map(gemm), accelerator


def timeloop(cost: MappedGemm, accelerator: Accelerator, constraints: str | None = None) -> dict[str, Any]:
    """All documents in one, as the tool merges them."""
    merged: dict[str, Any] = {}
    for text in export_timeloop(cost, accelerator, constraints).values():
        merged |= yaml.safe_load(text)
    return merged


class TagLoader(yaml.SafeLoader):
    pass


TagLoader.add_multi_constructor("!", lambda loader, tag, node: {"tag": tag, **loader.construct_mapping(node, deep=True)})


def accelforge(cost: MappedGemm, accelerator: Accelerator) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for text in export_accelforge(cost, accelerator).values():
        merged |= yaml.load(text, Loader=TagLoader)
    return merged


def factors(directive: dict[str, Any]) -> dict[str, int]:
    return {name: int(extent) for name, extent in re.findall(r"([A-Z])=(\d+)", directive.get("factors", ""))}


def check_memory(node: dict[str, Any], level: Level, accelerator: Accelerator) -> None:
    """AccelForge's memory has a level's actions, energies, size and ports."""
    assert [action["name"] for action in node["actions"]] == ["read", "write"]
    assert [action["energy"] for action in node["actions"]] == pytest.approx([level.energy_pJ * 1e-12] * 2)
    assert node["size"] == ("inf" if level.words is None else level.words * node["bits_per_action"])
    rates = [level.shared or level.read, level.shared or level.write]
    speeds = [rate * accelerator.clock_hz if rate else "inf" for rate in rates]
    assert [action["throughput"] for action in node["actions"]] == speeds
    assert node["total_latency"].startswith("sum" if level.shared else "max")


def components(architecture: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Timeloop's components from the outside in, each with its number of instances by the containers around it."""
    [node] = architecture["subtree"]
    count = 1
    while node:
        found = re.fullmatch(r"\w+(?:\[0\.\.(\d+)\])?", node["name"])
        assert found
        count *= int(found[1] or 0) + 1
        yield from ((count, component) for component in node["local"])
        [node] = node.get("subtree", [None])


def nest(mapping: list[dict[str, Any]], accelerator: Accelerator) -> list[Loop]:
    """Our loops from Timeloop's directives: permutations reversed, spatial loops of X and Y after the temporal ones."""
    loops = []
    for level in accelerator.levels:
        own = {directive["type"]: directive for directive in mapping if directive["target"] == level.name}
        extents = factors(own["temporal"])
        loops += [Loop(level.name, d, extents[d]) for d in reversed(own["temporal"]["permutation"])]
        if "spatial" in own:
            extents, axes = factors(own["spatial"]), [spatial for spatial in level.spatial if spatial.size > 1]
            for place, d in enumerate(own["spatial"]["permutation"]):
                if extents[d] > 1:
                    axis = axes[0] if place < own["spatial"]["split"] else axes[1]
                    loops.append(Loop(level.name, d, extents[d], axis.name))
    return loops


@pytest.mark.parametrize("gemm", [GEMM, BATCHED], ids=str)
@pytest.mark.parametrize("name", shipped_accelerators())
class TestTimeloop:
    def test_the_mapping_read_back_costs_the_same(self, name: str, gemm: Gemm) -> None:
        cost, accelerator = best(name, gemm)
        again = evaluate(gemm, accelerator, nest(timeloop(cost, accelerator)["mapping"], accelerator))
        assert (again.energy_pJ, again.cycles) == (pytest.approx(cost.energy_pJ), cost.cycles)

    def test_factors_multiply_to_the_extents(self, name: str, gemm: Gemm) -> None:
        cost, accelerator = best(name, gemm)
        document = timeloop(cost, accelerator)
        loops = [directive for directive in document["mapping"] if directive["type"] != "datatype"]
        dimensions = document["problem"]["shape"]["dimensions"]
        assert dimensions == (["M", "N", "K", "B"] if gemm.batch > 1 else ["M", "N", "K"])
        assert document["problem"]["instance"] == {
            d: math.prod(factors(directive)[d] for directive in loops) for d in dimensions
        }
        assert all(sorted(directive["permutation"]) == sorted(dimensions) for directive in loops)

    def test_every_fan_out_has_a_directive_that_fits_its_mesh(self, name: str, gemm: Gemm) -> None:
        cost, accelerator = best(name, gemm)
        document = timeloop(cost, accelerator)
        found = [component["attributes"] for _, component in components(document["architecture"])]
        spatial = {directive["target"]: directive for directive in document["mapping"] if directive["type"] == "spatial"}
        assert spatial.keys() == {level.name for level in accelerator.levels if level.fanout > 1}
        for level, outer, inner in zip(accelerator.levels, found, found[1:], strict=False):
            if level.name in spatial:
                directive = spatial[level.name]
                order, split = directive["permutation"], directive["split"]
                for axis, dimensions in (("meshX", order[:split]), ("meshY", order[split:])):
                    assert math.prod(factors(directive)[d] for d in dimensions) <= inner[axis] // outer[axis]

    def test_the_architecture_is_ours(self, name: str, gemm: Gemm) -> None:
        cost, accelerator = best(name, gemm)
        *memories, (macs, mac) = components(timeloop(cost, accelerator)["architecture"])
        assert (mac["name"], macs) == ("MAC", accelerator.macs)
        for level, (count, memory) in zip(accelerator.levels, memories, strict=True):
            attributes = memory["attributes"]
            assert (memory["name"], count) == (level.name, accelerator.instances(level.name))
            assert attributes["meshX"] * attributes["meshY"] == count
            assert attributes.get("depth") == level.words
            rates = [attributes.get(f"{port}_bandwidth") for port in ("read", "write", "shared")]
            assert rates == [level.read, level.write, level.shared]

    def test_tensors_bypass_the_levels_that_do_not_keep_them(self, name: str, gemm: Gemm) -> None:
        cost, accelerator = best(name, gemm)
        document = timeloop(cost, accelerator)
        for directives in (document["mapping"], document["architecture_constraints"]["targets"]):
            kept = {directive["target"]: directive for directive in directives if directive["type"] == "datatype"}
            for level in accelerator.levels:
                names = {tensor.capitalize() for tensor in level.keeps}
                assert set(kept[level.name]["keep"]) == names
                assert set(kept[level.name]["bypass"]) == {tensor.capitalize() for tensor in TENSORS} - names

    def test_energies_are_ours(self, name: str, gemm: Gemm) -> None:
        cost, accelerator = best(name, gemm)
        tables = timeloop(cost, accelerator)["ERT"]["tables"]
        energies = {table["name"]: {action["energy"] for action in table["actions"]} for table in tables}
        assert energies == {level.name: {level.energy_pJ} for level in accelerator.levels} | {"MAC": {accelerator.mac_pJ}}


def test_outputs_are_read_and_written_and_batches_are_in_all_tensors() -> None:
    shape = timeloop(*best("simba-l", BATCHED))["problem"]["shape"]
    spaces = {space["name"]: space for space in shape["data-spaces"]}
    assert {name for name, space in spaces.items() if space.get("read-write")} == {"Outputs"}
    assert {name: "".join(d for [[d]] in space["projection"]) for name, space in spaces.items()} == {
        "Inputs": "BMK",
        "Weights": "BKN",
        "Outputs": "BMN",
    }


def spread() -> tuple[MappedGemm, Accelerator]:
    """PEs over both N and M, and two temporal loops at a level."""
    loops = [
        Loop("GlobalBuffer", "M", 2),
        Loop("GlobalBuffer", "N", 3),
        Loop("GlobalBuffer", "N", 2, "PE"),
        Loop("GlobalBuffer", "M", 8, "PE"),
        Loop("WeightBuffer", "K", 4),
        Loop("InputBuffer", "N", 8, "lane"),
        Loop("AccuBuffer", "M", 4),
        Loop("AccuBuffer", "K", 32, "vector"),
    ]
    return evaluate(Gemm(64, 48, 128), SIMBA_L, loops), SIMBA_L


def test_permutations_begin_inside_and_one_axis_takes_two_dimensions() -> None:
    document = timeloop(*spread())
    temporal, spatial = [d for d in document["mapping"] if d["target"] == "GlobalBuffer" and d["type"] != "datatype"]
    assert (temporal["permutation"][:2], factors(temporal)) == ("NM", {"N": 3, "M": 2, "K": 1})
    assert (factors(spatial), spatial["split"]) == ({"N": 2, "M": 8, "K": 1}, 2)
    assert set(spatial["permutation"][:2]) == {"N", "M"}


def test_the_mapping_space_follows_the_constraints() -> None:
    cost = Mapper(SIMBA_L, "timeloop").map(GEMM)
    targets = timeloop(cost, SIMBA_L, "timeloop")["architecture_constraints"]["targets"]
    fixed = {(target["target"], target["type"]): factors(target) for target in targets if target["type"] != "datatype"}
    assert fixed["WeightBuffer", "temporal"] == {"M": 1, "N": 1}
    assert fixed["DRAM", "temporal"] == {"K": 1}
    assert fixed["WeightReg", "temporal"] == {"M": 1, "N": 1, "K": 1}
    assert fixed["GlobalBuffer", "spatial"] == {"K": 1}
    assert fixed["InputBuffer", "spatial"] == {"M": 1, "K": 1, "N": 8}
    assert fixed["AccuBuffer", "spatial"] == {"M": 1, "N": 1, "K": 32}
    free = timeloop(cost, SIMBA_L)["architecture_constraints"]["targets"]
    assert not [target for target in free if target["type"] == "temporal"]


def test_sums_that_must_not_leave_keep_loops_over_k_inside() -> None:
    accelerator = load_accelerator("systolic-os")
    accelerator = replace(accelerator, constraints={"still": Constraints({}, spill=False)})
    targets = timeloop(Mapper(accelerator).map(GEMM), accelerator, "still")["architecture_constraints"]["targets"]
    temporal = {target["target"]: target for target in targets if target["type"] == "temporal"}
    assert factors(temporal["DRAM"]) == {"K": 1}
    assert "factors" not in temporal["UnifiedBuffer"]
    assert temporal["UnifiedBuffer"]["permutation"] == "K"


@pytest.mark.parametrize("gemm", [GEMM, BATCHED], ids=str)
@pytest.mark.parametrize("name", shipped_accelerators())
class TestAccelForge:
    def test_loops_end_at_single_elements_within_the_fan_outs(self, name: str, gemm: Gemm) -> None:
        cost, accelerator = best(name, gemm)
        document = accelforge(cost, accelerator)
        shape = {d.lower(): gemm.extent(d) for d in "MNKB"}
        used: dict[tuple[str, str], int] = {}
        for node in document["mapping"]["nodes"]:
            if node["tag"] in ("Temporal", "Spatial"):
                extent, rest = divmod(shape[node["rank_variable"]], node["tile_shape"])
                assert (rest, extent > 1) == (0, True)
                shape[node["rank_variable"]] = node["tile_shape"]
                if node["tag"] == "Spatial":
                    place = node["component"], node["name"]
                    used[place] = used.get(place, 1) * extent
        assert set(shape.values()) == {1}
        sizes = {
            (node["name"], axis["name"]): axis["fanout"]
            for node in document["arch"]["nodes"]
            if node["tag"] == "Container"
            for axis in node["spatial"]
        }
        assert all(extent <= sizes[place] for place, extent in used.items())

    def test_every_tensor_is_stored_where_it_is_kept_from_the_outside_in(self, name: str, gemm: Gemm) -> None:
        cost, accelerator = best(name, gemm)
        nodes = accelforge(cost, accelerator)["mapping"]["nodes"]
        for tensor in TENSORS:
            stored = [node["component"] for node in nodes if node.get("tensors") == [tensor.capitalize()]]
            assert stored == [level.name for level in accelerator.levels if tensor in level.keeps]

    def test_the_architecture_is_ours(self, name: str, gemm: Gemm) -> None:
        cost, accelerator = best(name, gemm)
        nodes = {node["name"]: node for node in accelforge(cost, accelerator)["arch"]["nodes"]}
        for level in accelerator.levels:
            check_memory(nodes[level.name], level, accelerator)
        [compute] = nodes["MAC"]["actions"]
        assert compute["energy"] == pytest.approx(accelerator.mac_pJ * 1e-12)


def test_storage_is_outside_the_loops_that_its_tensor_stays_for() -> None:
    nodes = accelforge(*spread())["mapping"]["nodes"]
    order = [(node.get("component"), *node["tensors"]) if "tensors" in node else node.get("rank_variable") for node in nodes]
    register = order.index(("WeightReg", "Weights"))
    assert order[register + 1 :] == ["m", None]  # a weight stays for the rows
    sums = order.index(("AccuBuffer", "Outputs"))
    assert sums < order.index("k") < order.index(("InputBuffer", "Inputs"))  # sums stay for all of K


@pytest.mark.parametrize("name", shipped_accelerators())
@pytest.mark.parametrize("gemm", [GEMM, BATCHED, Gemm(384, 64, 768)], ids=str)
def test_accelforge_agrees(name: str, gemm: Gemm, tmp_path: Any) -> None:
    tool = pytest.importorskip("accelforge", reason="AccelForge is not installed: its figures are not compared")
    cost, accelerator = best(name, gemm)
    paths = []
    for file, text in export_accelforge(cost, accelerator).items():
        paths.append(tmp_path / file)
        paths[-1].write_text(text)
    result = tool.Spec.from_yaml(*paths).evaluate_mapping()
    assert result.energy() * 1e12 == pytest.approx(cost.energy_pJ, rel=0.06)
    assert result.latency() * accelerator.clock_hz == pytest.approx(cost.cycles, rel=0.25)
    counted = result.energy(per_component=True, per_tensor=True)
    for level in accelerator.levels:
        for tensor in set(level.keeps) - {"outputs"}:  # it counts reads of sums that we do not
            words = sum(cost.accesses[level.name][tensor].values())
            assert counted[level.name, tensor.capitalize()] * 1e12 == pytest.approx(words * level.energy_pJ, rel=1e-4)


@pytest.mark.parametrize("tool", EXPORTS)
class TestFiles:
    def test_comments_say_what_to_run_and_what_to_expect(self, tool: str) -> None:
        cost = Mapper(SIMBA_L).map(GEMM)
        for file, text in EXPORTS[tool](cost, SIMBA_L, None).items():
            note = text[: re.search(r"^[^#]", text, re.MULTILINE).start()]
            assert file.endswith(".yaml")
            assert text.isascii()
            figures = f"{cost.energy_pJ:.6g} pJ, {cost.cycles} cycles, EDP {cost.edp:.6g} J*s"
            assert tool in note.lower()
            assert all(part in note for part in (f"64x128x96 on {SIMBA_L.name} ({SIMBA_L.digest})", figures))

    def test_spilled_sums_are_pointed_out(self, tool: str) -> None:
        loops = [Loop("DRAM", "K", 2), Loop("DRAM", "M", 2)]
        spilled = evaluate(Gemm(2, 1, 2), SIMBA_L, loops)
        notes = [EXPORTS[tool](cost, SIMBA_L, None)["mapping.yaml"] for cost in (spilled, Mapper(SIMBA_L).map(GEMM))]
        assert ["leaves the accumulator" in note for note in notes] == [True, False]

    @pytest.mark.parametrize("fused", [{"on_chip": ("inputs",)}, {"reserved": 8}])
    def test_steps_of_a_cascade_are_refused(self, tool: str, fused: dict[str, Any]) -> None:
        cost = Mapper(SIMBA_L).map(replace(GEMM, **fused))
        with pytest.raises(ValueError, match="fused cascade"):
            EXPORTS[tool](cost, SIMBA_L, None)

    def test_names_must_be_identifiers(self, tool: str) -> None:
        levels = (replace(SIMBA_L.levels[0], name="main memory"), *SIMBA_L.levels[1:])
        with pytest.raises(ValueError, match="'main memory'"):
            EXPORTS[tool](Mapper(SIMBA_L).map(GEMM), replace(SIMBA_L, levels=levels), None)


class TestTimeloopRefuses:
    def test_unknown_constraints(self) -> None:
        with pytest.raises(ValueError, match="must name one of simba-l's \\(timeloop\\), got 'none'"):
            export_timeloop(Mapper(SIMBA_L).map(GEMM), SIMBA_L, "none")

    def test_two_loops_over_a_dimension_at_a_level(self) -> None:
        loops = [Loop("DRAM", "M", 2), Loop("DRAM", "N", 2), Loop("DRAM", "M", 2)]
        with pytest.raises(ValueError, match="one temporal loop a dimension at a level, DRAM has more"):
            export_timeloop(evaluate(Gemm(4, 2, 1), SIMBA_L, loops), SIMBA_L)

    def test_three_axes(self) -> None:
        axes = tuple(Spatial(name, 2, ("M",)) for name in "xyz")
        levels = (SIMBA_L.levels[0], Level("Buffer", TENSORS, 64, None, None, None, 1.0, axes))
        accelerator = replace(SIMBA_L, levels=levels, constraints={})
        with pytest.raises(ValueError, match="two spatial dimensions below a level, Buffer has 3"):
            export_timeloop(evaluate(Gemm(1, 1, 1), accelerator, []), accelerator)

    def test_the_largest_of_several_dimensions(self) -> None:
        accelerator = replace(SIMBA_L, constraints={"full": Constraints({}, largest=("PE",))})
        with pytest.raises(ValueError, match="largest PE of several dimensions"):
            export_timeloop(Mapper(accelerator).map(GEMM), accelerator, "full")
