"""`heat-hf report`."""

from __future__ import annotations

import argparse

from heat_hf.cli.values import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `report`."""
    parser.add_argument("model", help="Hub id or folder of a compressed model")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the report of a compressed model."""
    from pathlib import Path

    from heat_hf.report import REPORT_NAME, CompressionReport

    folder = Path(args.model)
    if not folder.is_dir():
        from huggingface_hub import hf_hub_download

        folder = Path(hf_hub_download(args.model, REPORT_NAME)).parent
    report = CompressionReport.load(folder)
    show(args, report.to_dict(), str(report))
    return 0
