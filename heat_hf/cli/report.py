"""`heat-hf report`."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from heat_hf.cli import options
from heat_hf.cli.values import parse_rank, show
from heat_hf.formats import FORMATS

if TYPE_CHECKING:
    from heat_hf.formats import TensorShape
    from heat_hf.formats.setting import TensorSetting
    from heat_hf.reports.compression import CompressionReport
    from heat_hf.reports.networks import Network
    from heat_hf.reports.ranks import RankRecord

Page = Callable[[], str]
Draw = Callable[[Path], object]
TABLE, RECORD, MODEL, PARTIAL = "a cost table", "what a search for ranks found", "a MODEL", "an unfinished search"
# Figures of the paper → what they are drawn of, with what makes it.
FIGURES = {
    "2": f"{TABLE}: heat-hf search shapes MODEL --output TABLE",
    "2c": "a dense MODEL",
    "6": "a setting, FORMAT SHAPE RANK, or a compressed MODEL with --tensor NAME",
    "7": f"{TABLE}: heat-hf search shapes MODEL --output TABLE",
    "9": "what a SuperNet's search found: heat-hf search ranks MODEL --rank-search supernet --output RECORD",
    "11": "a SuperNet's search, and others --without some stabilizers after --beside, as RECORD or unfinished RECORD.partial",
    "12": "a MODEL or RECORD, and others after --beside, with scores (heat-hf distill --eval-file) or divergences (heat-hf "
    "compress --calibration-file)",
}
TOKENS = 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `report`."""
    parser.add_argument(
        "what",
        nargs="+",
        metavar="WHAT",
        help="a compressed model, or a dense one, Hub id or folder; a file of `search shapes` or of `search ranks`; "
        "or a setting of a layer, FORMAT SHAPE RANK, as: cp 12x64:768 280",
    )
    options.add_output(parser, "DIR", "also write figures and pages there, each page one file that needs no network")
    parser.add_argument(
        "--figures", nargs="+", choices=FIGURES, metavar="N", help=f"only these of the paper's: {', '.join(FIGURES)}"
    )
    parser.add_argument(
        "--beside",
        nargs="+",
        metavar="WHAT",
        help="of the same dense model: other compressed models, or what other searches for ranks found",
    )
    parser.add_argument("--tensor", metavar="NAME", help="of a compressed model, the contraction of this matrix alone")
    parser.add_argument(
        "--tokens", type=options.COUNT, metavar="N", help=f"of a contraction (default: the model's, or {TOKENS})"
    )
    options.add_overwrite(parser)
    options.add_json(parser, "the report")


@dataclass(frozen=True)
class _Report:
    """What is printed, as data and as text, and what else can be written.

    Attributes:
        data: printed with --json.
        text: printed without.
        pages: file name → its HTML.
        figures: (number in the paper, file name) → what draws it; without a number, of its own.
    """

    data: object
    text: str
    pages: Mapping[str, Page] = field(default_factory=dict)
    figures: Mapping[tuple[str, str], Draw] = field(default_factory=dict)


def run(args: argparse.Namespace) -> int:
    """Print the report of a model, of a cost table, of a search for ranks, or of a layer's contraction."""
    from heat_hf.encoders.checkpoints.storage import atomic_directory

    if args.figures and args.output is None:
        raise ValueError(f"--figures {' '.join(args.figures)} needs --output DIR to draw to")
    if args.beside and args.output is None:
        raise ValueError("--beside puts others on a page and its figures: give --output DIR, too")
    report = _report(args)
    pages, figures = _wanted(report, args)
    if args.output is not None:
        with atomic_directory(args.output, args.overwrite) as folder:
            for name, page in pages.items():
                (folder / name).write_text(page(), encoding="utf-8")
            for name, draw in figures.items():
                draw(folder / name)
        opened = "".join(f"; open {name} in a browser" for name in pages)
        print(f"written to {args.output}{opened}", file=sys.stderr)
    show(args, report.data, report.text)
    return 0


def _wanted(report: _Report, args: argparse.Namespace) -> tuple[Mapping[str, Page], dict[str, Draw]]:
    """Pages and figures by file name: all that there are, or the figures asked for alone."""
    if not args.figures:
        return report.pages, {name: draw for (_, name), draw in report.figures.items()}
    drawn = {number for number, _ in report.figures}
    for number in args.figures:
        if number not in drawn:
            raise ValueError(f"--figures {number} cannot be drawn of {' '.join(args.what)}: it needs {FIGURES[number]}")
    return {}, {name: draw for (number, name), draw in report.figures.items() if number in args.figures}


def _report(args: argparse.Namespace) -> _Report:
    if len(args.what) == 3 and args.what[0] in FORMATS:
        _refuse(args, "a setting", "beside", "tensor")
        return _contraction(_setting(*args.what), args.tokens or TOKENS)
    if len(args.what) != 1:
        raise ValueError(f"name one model or file, or a setting as FORMAT SHAPE RANK, got {' '.join(args.what)!r}")
    (what,) = args.what
    kind = _kind(what)
    if kind == MODEL:
        return _model(args, what)
    if kind == PARTIAL:
        raise ValueError(f"{what} is {PARTIAL}: go on with its search, or name it after --beside")
    _refuse(args, kind, "tensor", "tokens", *(["beside"] if kind == TABLE else []))
    return _shapes(what) if kind == TABLE else _ranks(args, what)


def _refuse(args: argparse.Namespace, what: str, *names: str) -> None:
    """Raise ValueError if an option is given that says nothing of what is reported."""
    for name in names:
        if getattr(args, name) is not None:
            raise ValueError(f"--{name} is of no use for {what}: leave it out")


def _kind(what: str) -> str:
    """What a file is, by how it starts; of a missing one, by its name."""
    path = Path(what)
    if path.suffix == ".partial":
        return PARTIAL
    if not path.is_file():
        return MODEL if path.is_dir() else {".parquet": TABLE, ".json": RECORD}.get(path.suffix, MODEL)
    with path.open("rb") as file:
        return TABLE if file.read(4) == b"PAR1" else RECORD


def _setting(format: str, shape: str, rank: str) -> TensorSetting:
    from heat_hf.formats import get_format
    from heat_hf.formats.setting import TensorSetting

    codec, parsed = get_format(format), _shape(shape)
    return TensorSetting(format, parsed, codec.parse_rank(parsed, parse_rank(rank)))


def _shape(text: str) -> TensorShape:
    from heat_hf.formats import TensorShape
    from heat_hf.formats.setting import MOST_MODES

    modes = [part.split("x") for part in text.split(":")]
    extents = [int(extent) for part in modes for extent in part if extent.isdecimal() and len(extent) < 9]
    count = sum(map(len, modes))
    if len(modes) != 2 or len(extents) != count or count > MOST_MODES or not math.prod(extents):
        raise ValueError(f"SHAPE must be OUT:IN with an x between modes, {MOST_MODES} at most, as 12x64:768, got {text!r}")
    return TensorShape(tuple(extents[: len(modes[0])]), tuple(extents[len(modes[0]) :]))


def _contraction(setting: TensorSetting, tokens: int) -> _Report:
    from heat_hf.reports.trees import trees_data, trees_text

    def draw(path: Path) -> None:
        from heat_hf.reports.figures.trees import draw_trees

        draw_trees(setting, tokens, path)

    return _Report(trees_data(setting, tokens), trees_text(setting, tokens), figures={("6", "figure-6.png"): draw})


def _shapes(path: str) -> _Report:
    from heat_hf.reports.shapes import page, table_data, table_text
    from heat_hf.search.shapes.table import CostTable

    def drawn(number: str, size: str) -> Draw:
        from heat_hf.reports.figures import shapes

        draw = {"2": shapes.draw_figure_2, "7": shapes.draw_figure_7}[number]
        return lambda file: draw(table, size, file)

    table = CostTable.load(path)
    figures = {(number, f"figure-{number}-{size}.png"): drawn(number, size) for number in "27" for size in table.sizes}
    return _Report(table_data(table), table_text(table), {"shapes.html": lambda: page(table)}, figures)


def _ranks(args: argparse.Namespace, path: str) -> _Report:
    from heat_hf.reports.networks import networks_of
    from heat_hf.reports.ranks import RankRecord

    record = RankRecord.load(path)
    others = [network for other in args.beside or () for network in _beside(record, other)]
    subnets = [] if record.fidelity is None else record.fidelity.get("subnets", [])

    def page() -> str:
        from heat_hf.reports.rank_page import rank_page

        return rank_page(record, others)

    def draw_map(file: Path) -> None:
        from heat_hf.reports.figures.ranks import draw_rank_map

        draw_rank_map(record, file)

    def draw_9(file: Path) -> None:
        from heat_hf.reports.figures.ranks import draw_fidelity
        from heat_hf.reports.networks import retrained_pairs

        assert record.fidelity is not None
        pairs = list(zip(record.fidelity["measured"], record.fidelity["predicted"], strict=True))
        draw_fidelity(pairs, file, (record.fidelity["spearman"], record.fidelity["kendall"]), retrained_pairs(record, others))

    figures: dict[tuple[str, str], Draw] = {("", "ranks.png"): draw_map}
    if record.fidelity is not None:
        figures["9", "figure-9.png"] = draw_9
    figures |= _ablation(record, path, args.beside or ())
    figures |= _tradeoff(record.model, [*networks_of(record), *others], subnets)
    return _Report(record.to_dict(), str(record), {"ranks.html": page}, figures)


def _ablation(record: RankRecord, path: str, others: Sequence[str]) -> dict[tuple[str, str], Draw]:
    """Figure 11 of SuperNet's searches without some stabilizers, finished or not, if there are several."""
    from heat_hf.reports.ablation import ablation, recipe_in, recipe_of, require_same_subnets
    from heat_hf.reports.figures.ranks import draw_ablation
    from heat_hf.reports.ranks import RankRecord

    first = recipe_of(record, path)
    files = [other for other in others if _kind(other) != MODEL]
    found = [recipe_in(Path(other)) if _kind(other) == PARTIAL else recipe_of(RankRecord.load(other), other) for other in files]
    recipes = [first, *(recipe for recipe in found if recipe is not None and recipe.label != first.label)] if first else []
    if first is None or len(recipes) < 2:
        return {}
    for recipe in recipes[1:]:
        require_same_subnets(first, recipe)
    title = f"The same {len(first.accuracies)} SubNets after {first.steps} steps of training"
    return {("11", "figure-11.png"): lambda file: draw_ablation(ablation(recipes), file, title)}


def _beside(record: RankRecord, other: str) -> list[Network]:
    """The networks of another record of the same search, or a compressed model of the same dense one."""
    if _kind(other) == PARTIAL:
        return []
    from heat_hf.reports.compression import CompressionReport
    from heat_hf.reports.networks import network_of, networks_of, require_of_search, require_same_search
    from heat_hf.reports.ranks import RankRecord

    if _kind(other) == RECORD:
        found = RankRecord.load(other)
        require_same_search(record, found, other)
        return networks_of(found)
    report = CompressionReport.from_pretrained(other)
    require_of_search(record, report, other)
    return [network_of(other, report)]


def _tradeoff(
    name: str, networks: Sequence[Network], subnets: Sequence[tuple[float, float]] = ()
) -> dict[tuple[str, str], Draw]:
    """Figure 12 of networks of one dense model, if there is anything to draw."""
    from heat_hf.reports.figures.tradeoff import draw_tradeoff, panels_of

    panels = panels_of(networks, subnets)
    return {("12", "figure-12.png"): lambda file: draw_tradeoff(panels, file, name)} if panels else {}


def _model(args: argparse.Namespace, model: str) -> _Report:
    from heat_hf.reports.compression import CompressionReport

    try:
        report = CompressionReport.from_pretrained(model)
    except OSError as missing:
        return _dense(args, model, missing)
    if args.tensor is not None:
        _refuse(args, "a --tensor", "beside")
        return _contraction(_setting_of(report, args.tensor), args.tokens or report.tokens)
    _refuse(args, "a whole model", "tokens")

    def page() -> str:
        from heat_hf.reports.model_page import report_page

        return report_page(model, args.beside or ())

    return _Report(report.to_dict(), str(report), {"report.html": page}, _beside_models(model, report, args.beside or ()))


def _beside_models(model: str, report: CompressionReport, others: Sequence[str]) -> dict[tuple[str, str], Draw]:
    """Figure 12 of compressed models of one dense model."""
    from heat_hf.reports.compression import CompressionReport
    from heat_hf.reports.model_page import require_comparable
    from heat_hf.reports.networks import network_of

    networks = [network_of(model, report)]
    for other in others:
        found = CompressionReport.from_pretrained(other)
        require_comparable(report, found, other)
        networks.append(network_of(other, found))
    return _tradeoff(report.base_model, networks)


def _setting_of(report: CompressionReport, name: str) -> TensorSetting:
    """Of one matrix of a compressed model."""
    settings = {tensor.name: tensor.setting for tensor in report.tensors if tensor.setting is not None}
    if name not in settings:
        some = f"there are {next(iter(settings))} and {len(settings) - 1} more" if settings else "it has none"
        raise ValueError(f"--tensor must name a factorized matrix of the model, got {name!r}; {some}")
    return settings[name]


def _dense(args: argparse.Namespace, model: str, missing: OSError) -> _Report:
    """How close to low rank the matrices of a dense model are; `missing` says why it is no compressed one."""
    from heat_hf.compression.compressor import HeatCompressor
    from heat_hf.encoders.checkpoints.names import checkpoint_name
    from heat_hf.encoders.checkpoints.reading import told
    from heat_hf.encoders.linears import encoder_linears
    from heat_hf.encoders.low_rankness import low_rankness
    from heat_hf.reports.low_rankness import low_rankness_data, low_rankness_text

    def draw(path: Path) -> None:
        from heat_hf.reports.figures.low_rankness import draw_low_rankness

        draw_low_rankness(name, matrices, path)

    try:
        with told(model):
            dense = HeatCompressor.from_pretrained(model, trust_remote_code=False).model
    except (OSError, ValueError) as error:
        raise missing from error
    _refuse(args, "a dense model", "beside", "tensor", "tokens")
    name, matrices = checkpoint_name(dense), low_rankness(encoder_linears(dense))
    return _Report(
        low_rankness_data(name, matrices), low_rankness_text(name, matrices), figures={("2c", "figure-2c.png"): draw}
    )
