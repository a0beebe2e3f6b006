"""`heat-hf report`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from heat_hf.cli import options
from heat_hf.cli.values import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `report`."""
    parser.add_argument(
        "what",
        nargs="+",
        metavar="MODEL | shapes TABLE | ranks RECORD",
        help="Hub id or folder of a compressed model; or a saved cost table, or what a search for ranks found",
    )
    options.add_output(parser, "DIR", "also write pictures there, or of a model report.html, a page of one file")
    parser.add_argument("--beside", nargs="+", metavar="MODEL", help="other models of the same dense one, for the Pareto view")
    options.add_overwrite(parser)
    options.add_json(parser, "the report")


@dataclass(frozen=True)
class _Report:
    """What is printed, as data and as text; what writes its page or pictures into a folder; and what is told of that folder."""

    data: object
    text: str
    write: Callable[[Path], object]
    written: str


def run(args: argparse.Namespace) -> int:
    """Print the report of a compressed model, of a cost table, or of a search for ranks."""
    from heat_hf.encoders.checkpoints.storage import atomic_directory

    report = _report(args)
    if args.output is not None:
        with atomic_directory(args.output, args.overwrite) as folder:
            report.write(folder)
        print(report.written.format(args.output), file=sys.stderr)
    show(args, report.data, report.text)
    return 0


def _report(args: argparse.Namespace) -> _Report:
    saved = {"shapes": _shapes, "ranks": _ranks}
    if args.beside and (args.output is None or len(args.what) != 1):
        raise ValueError("--beside puts models on the page of a MODEL: heat-hf report MODEL --beside OTHER --output DIR")
    if len(args.what) == 2 and args.what[0] in saved:
        return saved[args.what[0]](args.what[1])
    if len(args.what) != 1 or args.what[0] in saved:
        raise ValueError(f"name a MODEL, or: shapes TABLE, or: ranks RECORD, got {' '.join(args.what)!r}")
    return _model(args.what[0], args.beside or ())


def _model(model: str, beside: tuple[str, ...]) -> _Report:
    from heat_hf.reports.compression import CompressionReport

    def write(folder: Path) -> None:
        from heat_hf.reports.model_page import report_page

        (folder / "report.html").write_text(report_page(model, beside), encoding="utf-8")

    report = CompressionReport.from_pretrained(model)
    return _Report(report.to_dict(), str(report), write, "written to {}; open report.html in a browser")


def _ranks(path: str) -> _Report:
    from heat_hf.reports.ranks import RankRecord

    def write(folder: Path) -> None:
        from heat_hf.reports.figures.ranks import draw_fidelity, draw_rank_map

        draw_rank_map(record, folder / "ranks.png")
        if record.fidelity is not None:
            pairs = list(zip(record.fidelity["measured"], record.fidelity["predicted"], strict=True))
            draw_fidelity(pairs, folder / "fidelity.png", (record.fidelity["spearman"], record.fidelity["kendall"]))

    record = RankRecord.load(path)
    return _Report(record.to_dict(), str(record), write, "drawn to {}")


def _shapes(path: str) -> _Report:
    from heat_hf.reports.shapes import page, table_data, table_text
    from heat_hf.search.shapes.table import CostTable

    def write(folder: Path) -> None:
        from heat_hf.reports.figures.shapes import draw_figure_2, draw_figure_7

        (folder / "shapes.html").write_text(page(table))
        for size in table.sizes:
            draw_figure_7(table, size, folder / f"figure-7-{size}.png")
            draw_figure_2(table, size, folder / f"figure-2-{size}.png")

    table = CostTable.load(path)
    return _Report(table_data(table), table_text(table), write, "drawn to {}; open shapes.html in a browser")
