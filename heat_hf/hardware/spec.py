"""Accelerator descriptions: a YAML file, checked field by field, as frozen dataclasses.

A matrix product Y[M, N] = X[M, K]·W[K, N] moves three tensors, called inputs, weights and outputs, through the levels of
a memory hierarchy, and unrolls its dimensions M, N, K over the spatial dimensions between them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

CPU = "cpu"  # what users call the machine at hand, in the place of an accelerator

TENSORS = ("inputs", "weights", "outputs")
DIMENSIONS = ("M", "N", "K", "B")
WORDS = (*TENSORS, "partial_sums")


@dataclass(frozen=True)
class Spatial:
    """Copies of everything further in, over which dimensions are unrolled.

    Attributes:
        name: what the copies are, for example "PE".
        size: number of copies.
        unrolls: dimensions that may be spread over them.
    """

    name: str
    size: int
    unrolls: tuple[str, ...]


@dataclass(frozen=True)
class Level:
    """One level of memory.

    Attributes:
        name: its name.
        keeps: tensors stored here; the others bypass it.
        words: capacity of one instance; None for unlimited.
        read, write: words a cycle of one instance; None for unlimited.
        shared: words a cycle, reads and writes together; None if they are separate.
        energy_pJ: energy of reading or writing one word.
        spatial: how often everything further in exists below one instance.
    """

    name: str
    keeps: tuple[str, ...]
    words: int | None
    read: float | None
    write: float | None
    shared: float | None
    energy_pJ: float  # noqa: N815 - the unit's own spelling
    spatial: tuple[Spatial, ...]

    @property
    def fanout(self) -> int:
        """Copies of the next level below one instance."""
        return math.prod(dimension.size for dimension in self.spatial)


@dataclass(frozen=True)
class Constraints:
    """A part of the mapping space to keep to.

    Attributes:
        loops: level → dimensions that may have temporal loops there; all, for levels not named.
        largest: spatial dimensions that unroll as much as divides the product, not less.
        spill: whether partial sums may leave the innermost level that keeps outputs.
    """

    loops: Mapping[str, tuple[str, ...]]
    largest: tuple[str, ...] = ()
    spill: bool = True


@dataclass(frozen=True)
class Accelerator:
    """A spatial accelerator.

    Attributes:
        name: its name.
        technology: where the figures come from.
        clock_hz: cycles a second.
        word_bits: bits of a word of each tensor, and of a partial sum.
        mac_pJ: energy of one multiply-accumulate.
        levels: memories from the outside in; the first keeps all tensors and is unlimited.
        constraints: named parts of the mapping space.
    """

    name: str
    technology: str
    clock_hz: float
    word_bits: Mapping[str, int]
    mac_pJ: float  # noqa: N815 - the unit's own spelling
    levels: tuple[Level, ...]
    constraints: Mapping[str, Constraints] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """First 16 hex digits of a SHA-256 over every field: reports that share it are about the same hardware."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def macs(self) -> int:
        """Multiply-accumulates a cycle when all units are busy."""
        return math.prod(level.fanout for level in self.levels)

    def rules(self, name: str) -> Constraints:
        """The constraints of that name.

        Raises:
            ValueError: if there are none.
        """
        if name not in self.constraints:
            names = ", ".join(self.constraints) or "none"
            raise ValueError(f"constraints must name one of {self.name}'s ({names}), got {name!r}")
        return self.constraints[name]

    def instances(self, name: str) -> int:
        """How many instances of a level there are.

        Raises:
            ValueError: if there is no such level.
        """
        count = 1
        for level in self.levels:
            if level.name == name:
                return count
            count *= level.fanout
        raise ValueError(f"{self.name} has no level {name!r}; it has {', '.join(level.name for level in self.levels)}")


def shipped_accelerators() -> tuple[str, ...]:
    """Names of the accelerators that come with the package."""
    names = (Path(file.name).stem for file in (files(__package__) / "accelerators").iterdir() if file.name.endswith(".yaml"))
    return tuple(sorted(name.replace("_", "-") for name in names))


def load_accelerator(source: str | os.PathLike[str]) -> Accelerator:
    """Read an accelerator by name ("simba-l") or from a YAML file.

    Raises:
        FileNotFoundError: if there is no such name or file.
        ValueError: if the description cannot work; the message names the file, the line and the field, and what is allowed.
    """
    text = os.fspath(source)
    if text.endswith((".yaml", ".yml")):
        if not Path(text).is_file():
            raise FileNotFoundError(f"no accelerator file {text}")
        return _read(Path(text).read_text(), text)
    name = text.replace("_", "-")
    if name == CPU:
        raise FileNotFoundError("'cpu' is this machine, which compress and the searches measure: there is no description of it")
    if name not in shipped_accelerators():
        raise FileNotFoundError(
            f"no accelerator {text!r}; shipped are {', '.join(shipped_accelerators())}, or give the path of a .yaml file"
        )
    resource = files(__package__) / "accelerators" / f"{name.replace('-', '_')}.yaml"
    return _read(resource.read_text(), name)


FIELDS = {"name", "technology", "clock_hz", "word_bits", "mac_pJ", "levels"}


class _Lined(dict[str, Any]):
    """A YAML mapping that knows its line."""

    line = 0


class _Loader(yaml.SafeLoader):
    """What a description needs of YAML: no tags that make objects, no aliases (a few lines of them are a billion nodes)."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases are not taken", problem_mark=self.peek_event().start_mark)  # type: ignore[no-untyped-call]
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [str(key.value) for key, _ in node.value]
        for key, _ in node.value:
            if keys.count(str(key.value)) > 1:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} is there twice", problem_mark=key.start_mark)
        mapping = _Lined({str(key): value for key, value in super().construct_mapping(node, deep=True).items()})
        mapping.line = node.start_mark.line + 1
        return mapping


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _Loader.construct_mapping)


def _read(text: str, source: str) -> Accelerator:
    try:
        data = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(
            f"{source} is not YAML of the kind that describes accelerators: {' '.join(str(error).split())}"
        ) from error
    reader = _Reader(source)
    data = reader.mapping(data, "the file", FIELDS, {"constraints"})
    bits = reader.mapping(data["word_bits"], "word_bits", set(WORDS), set())
    levels = reader.items(data, "levels")
    accelerator = Accelerator(
        name=str(data["name"]),
        technology=str(data["technology"]),
        clock_hz=reader.positive(data, "clock_hz"),
        word_bits={tensor: int(reader.positive(bits, tensor)) for tensor in WORDS},
        mac_pJ=reader.positive(data, "mac_pJ"),
        levels=tuple(reader.level(level) for level in levels),
    )
    reader.check(accelerator, levels)
    return replace(accelerator, constraints=reader.constraints(data.get("constraints", _Lined()), accelerator))


class _Reader:
    """Reads fields, and says which one is wrong, in which line of which file."""

    def __init__(self, source: str) -> None:
        self.source = source

    def error(self, mapping: object, message: str) -> ValueError:
        return ValueError(f"{self.source}, line {getattr(mapping, 'line', 1)}: {message}")

    def mapping(self, value: object, name: str, required: set[str], optional: set[str] | None) -> _Lined:
        """`value` if it is a mapping with these fields; any others too if `optional` is None."""
        if not isinstance(value, _Lined):
            what = f" with {', '.join(sorted(required))}" if required else ""
            raise self.error(value, f"{name} must be a mapping{what}, got {value!r}")
        if optional is None:
            return value
        missing, unknown = required - value.keys(), value.keys() - required - optional
        if missing or unknown:
            what = f"lacks {', '.join(sorted(missing))}" if missing else f"has unknown fields {', '.join(sorted(unknown))}"
            raise self.error(value, f"{name} {what}; allowed are {', '.join(sorted(required | optional))}")
        return value

    def items(self, data: _Lined, field: str, empty: bool = False) -> list[Any]:
        if not isinstance(data[field], list) or not (data[field] or empty):
            raise self.error(data, f"{field} must be a list{'' if empty else ' that is not empty'}, got {data[field]!r}")
        return list(data[field])

    def positive(self, data: _Lined, field: str, integer: bool = False) -> float:
        value = data[field]
        if isinstance(value, str):  # YAML 1.1 reads 1.68e9 as text
            try:
                value = float(value)
            except ValueError:
                value = None
        valid = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf
        if not valid or (integer and value != int(value)):
            kind = "a positive integer" if integer else "a positive number"
            raise self.error(data, f"{field} must be {kind}, got {data[field]!r}")
        return int(value) if integer else float(value)

    def names(self, data: _Lined, field: str, allowed: tuple[str, ...], empty: bool = False) -> tuple[str, ...]:
        values = self.items(data, field, empty)
        wrong = [value for value in values if value not in allowed]
        if wrong or len(set(values)) != len(values):
            raise self.error(data, f"{field} must name some of {', '.join(allowed)}, each once, got {values!r}")
        return tuple(values)

    def level(self, value: object) -> Level:
        data = self.mapping(value, "a level", {"name", "keeps", "energy_pJ"}, {"words", "bandwidth", "spatial"})
        rates = self.mapping(data.get("bandwidth", _Lined()), "bandwidth", set(), {"read", "write", "shared"})
        if "shared" in rates and len(rates) > 1:
            raise self.error(rates, "bandwidth has either shared, or read and write")
        spatial = self.items(data, "spatial") if "spatial" in data else []
        return Level(
            name=str(data["name"]),
            keeps=self.names(data, "keeps", TENSORS),
            words=int(self.positive(data, "words", integer=True)) if "words" in data else None,
            **{rate: self.positive(rates, rate) if rate in rates else None for rate in ("read", "write", "shared")},
            energy_pJ=self.positive(data, "energy_pJ"),
            spatial=tuple(self.spatial(dimension) for dimension in spatial),
        )

    def spatial(self, value: object) -> Spatial:
        data = self.mapping(value, "a spatial dimension", {"name", "size", "unrolls"}, set())
        size = int(self.positive(data, "size", integer=True))
        return Spatial(str(data["name"]), size, self.names(data, "unrolls", DIMENSIONS))

    def constraints(self, value: object, accelerator: Accelerator) -> dict[str, Constraints]:
        levels = {level.name for level in accelerator.levels}
        spatial = tuple(dimension.name for level in accelerator.levels for dimension in level.spatial)
        read = {}
        for name, rules in self.mapping(value, "constraints", set(), None).items():
            data = self.mapping(rules, f"constraints {name}", set(), {"loops", "largest", "spill"})
            loops = self.mapping(data.get("loops", _Lined()), "loops", set(), levels)
            if not isinstance(data.get("spill", True), bool):
                raise self.error(data, f"spill must be true or false, got {data['spill']!r}")
            read[name] = Constraints(
                {level: self.names(loops, level, DIMENSIONS, empty=True) for level in loops},
                self.names(data, "largest", spatial, empty=True) if "largest" in data else (),
                data.get("spill", True),
            )
        return read

    def check(self, accelerator: Accelerator, data: list[Any]) -> None:
        """What no single field can tell: unique names, a complete outer level, room for one tile of everything kept."""
        first = accelerator.levels[0]
        if set(first.keeps) != set(TENSORS) or first.words is not None:
            raise self.error(data[0], f"the outermost level, {first.name}, must keep all tensors and have no size in words")
        for tensor in TENSORS:
            if not any(tensor in level.keeps for level in accelerator.levels[1:]):
                raise self.error(data[0], f"no level inside {first.name} keeps {tensor}: a level is missing")
        seen: set[str] = set()
        for level, mapping in zip(accelerator.levels, data, strict=True):
            if level.name in seen:
                raise self.error(mapping, f"two levels are named {level.name}")
            seen.add(level.name)
            if level.words is not None and level.words < len(level.keeps):
                raise self.error(
                    mapping, f"{level.name} has {level.words} words: not even one of each of {', '.join(level.keeps)}"
                )
