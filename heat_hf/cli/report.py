"""`heat-hf report`."""

from __future__ import annotations

import argparse
import sys

from heat_hf.cli.values import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `report`."""
    parser.add_argument(
        "what",
        nargs="+",
        metavar="MODEL | shapes TABLE | ranks RECORD",
        help="Hub id or folder of a compressed model; or a saved cost table, or what a search for ranks found",
    )
    parser.add_argument(
        "--output", metavar="DIR", help="also write pictures there, or of a model report.html, a page of one file"
    )
    parser.add_argument("--beside", nargs="+", metavar="MODEL", help="other models of the same dense one, for the Pareto view")
    parser.add_argument("--overwrite", action="store_true", help="replace a non-empty DIR")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the report of a compressed model, of a cost table, or of a search for ranks."""
    saved = {"shapes": _shapes, "ranks": _ranks}
    if args.beside and (args.output is None or len(args.what) != 1):
        raise ValueError("--beside puts models on the page of a MODEL: heat-hf report MODEL --beside OTHER --output DIR")
    if len(args.what) == 2 and args.what[0] in saved:
        return saved[args.what[0]](args, args.what[1])
    if len(args.what) != 1 or args.what[0] in saved:
        raise ValueError(f"name a MODEL, or: shapes TABLE, or: ranks RECORD, got {' '.join(args.what)!r}")
    return _model(args, args.what[0])


def _ranks(args: argparse.Namespace, path: str) -> int:
    from heat_hf.encoders.checkpoints.storage import atomic_directory
    from heat_hf.reports.figures.ranks import draw_fidelity, draw_rank_map
    from heat_hf.reports.ranks import RankRecord

    record = RankRecord.load(path)
    if args.output is not None:
        with atomic_directory(args.output, args.overwrite) as folder:
            draw_rank_map(record, folder / "ranks.png")
            if record.fidelity is not None:
                pairs = list(zip(record.fidelity["measured"], record.fidelity["predicted"], strict=True))
                draw_fidelity(pairs, folder / "fidelity.png", (record.fidelity["spearman"], record.fidelity["kendall"]))
        print(f"drawn to {args.output}", file=sys.stderr)
    show(args, record.to_dict(), str(record))
    return 0


def _model(args: argparse.Namespace, model: str) -> int:
    from heat_hf.reports.compression import CompressionReport

    report = CompressionReport.from_pretrained(model)
    if args.output is not None:
        from heat_hf.encoders.checkpoints.storage import atomic_directory, check_target
        from heat_hf.reports.model_page import page

        check_target(args.output, args.overwrite)
        text = page(model, args.beside or ())
        with atomic_directory(args.output, args.overwrite) as folder:
            (folder / "report.html").write_text(text, encoding="utf-8")
        print(f"written to {args.output}; open report.html in a browser", file=sys.stderr)
    show(args, report.to_dict(), str(report))
    return 0


def _shapes(args: argparse.Namespace, path: str) -> int:
    from heat_hf.encoders.checkpoints.storage import atomic_directory
    from heat_hf.reports.figures.shapes import draw_figure_2, draw_figure_7
    from heat_hf.reports.shapes import page, table_data, table_text
    from heat_hf.search.shapes.table import CostTable

    table = CostTable.load(path)
    if args.output is not None:
        with atomic_directory(args.output, args.overwrite) as folder:
            (folder / "shapes.html").write_text(page(table))
            for size in table.sizes:
                draw_figure_7(table, size, folder / f"figure-7-{size}.png")
                draw_figure_2(table, size, folder / f"figure-2-{size}.png")
        print(f"drawn to {args.output}; open shapes.html in a browser", file=sys.stderr)
    show(args, table_data(table), table_text(table))
    return 0
