"""`heat-hf report`."""

from __future__ import annotations

import argparse
import sys

from heat_hf.cli.values import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `report`."""
    parser.add_argument(
        "what", nargs="+", metavar="MODEL | shapes TABLE", help="Hub id or folder of a compressed model; or a saved cost table"
    )
    parser.add_argument("--output", metavar="DIR", help="of a cost table: also draw pictures and a page there")
    parser.add_argument("--overwrite", action="store_true", help="replace a non-empty DIR")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the report of a compressed model, or of a cost table."""
    if len(args.what) == 2 and args.what[0] == "shapes":
        return _shapes(args, args.what[1])
    if len(args.what) != 1 or args.what == ["shapes"]:
        raise ValueError(f"name a MODEL, or: shapes TABLE, got {' '.join(args.what)!r}")
    if args.output is not None:
        raise ValueError("--output needs a cost table: heat-hf report shapes TABLE --output DIR")
    return _model(args, args.what[0])


def _model(args: argparse.Namespace, model: str) -> int:
    from pathlib import Path

    from heat_hf.report import REPORT_NAME, CompressionReport

    folder = Path(model)
    if not folder.is_dir():
        from huggingface_hub import hf_hub_download

        folder = Path(hf_hub_download(model, REPORT_NAME)).parent
    report = CompressionReport.load(folder)
    show(args, report.to_dict(), str(report))
    return 0


def _shapes(args: argparse.Namespace, path: str) -> int:
    from heat_hf.search.table import CostTable
    from heat_hf.search_plots import draw_figure_2, draw_figure_7
    from heat_hf.search_report import page, table_data, table_text
    from heat_hf.storage import atomic_directory

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
