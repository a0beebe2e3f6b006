"""`heat-hf compress`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from heat_hf.cli.values import parse_pairs, parse_rank, show
from heat_hf.compression.config import CALIBRATION_MEMORY, RANK_SEARCHES
from heat_hf.formats import FORMATS
from heat_hf.formats.setting import EXECUTIONS

if TYPE_CHECKING:
    from heat_hf.reports.ranks import Variant


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `compress`."""
    parser.add_argument("model", help="Hub id or folder of the dense checkpoint")
    size = parser.add_argument_group("what to factorize, and how far")
    size.add_argument("--decomposition", default="low_rank", help=f"{', '.join(FORMATS)} (default: %(default)s)")
    size.add_argument("--target-params-ratio", type=float, metavar="R", help="parameters to keep, 0 < R < 1")
    size.add_argument("--target-edp-ratio", type=float, metavar="R", help="EDP of all matrices to keep instead, 0 < R < 1")
    size.add_argument("--target-latency", type=float, metavar="S", help="seconds of a forward pass on the accelerator instead")
    size.add_argument("--ranks", metavar="RECORD", help="take what heat-hf search ranks found")
    size.add_argument("--variant", metavar="NAME", help="which of its variants, as HEAT-a1")
    size.add_argument("--rank", nargs="+", metavar="[SIZE=]R", help="rank instead: 64, or 16,24,80, or 384x1536=96 …")
    size.add_argument("--shape", nargs="+", metavar="[SIZE=]S", help="tensorization shape: 768:12x64, or 384x1536=384:32x48 …")
    size.add_argument("--rank-search", default="uniform", help=f"{', '.join(RANK_SEARCHES)} (default: %(default)s)")
    size.add_argument("--cost-table", metavar="TABLE", help="what heat-hf search shapes found, for shapes and for pareto")
    size.add_argument("--modules", nargs="+", metavar="REGEX", help="linears to factorize (default: the Transformer blocks')")
    size.add_argument("--exclude", nargs="+", default=[], metavar="REGEX", help="linears to leave dense")
    how = parser.add_argument_group("calibration and decomposition")
    how.add_argument("--calibration-file", metavar="FILE", help="sentences for the activation-aware projection")
    how.add_argument("--calibration-rows", type=int, default=4096, metavar="N", help="rows of it to use (default: %(default)s)")
    how.add_argument("--calibration-memory", default="model", choices=CALIBRATION_MEMORY, help="default: %(default)s")
    how.add_argument("--match-variance", action="store_true", help="scale W' to the variance of W")
    how.add_argument("--seed", type=int, default=0)
    run = parser.add_argument_group("execution")
    run.add_argument("--execution", default="auto", choices=EXECUTIONS, help="default: %(default)s")
    run.add_argument("--sequence-length", type=int, default=128, metavar="L", help="default: %(default)s")
    run.add_argument("--batch-size", type=int, default=1, metavar="B", help="default: %(default)s")
    run.add_argument("--accelerator", default="simba-l", metavar="NAME|FILE.yaml", help="for EDP figures; default: %(default)s")
    out = parser.add_argument_group("output")
    out.add_argument("--output", metavar="DIR", help="where to save; appears only when all is done")
    out.add_argument("--overwrite", action="store_true", help="replace a non-empty DIR")
    out.add_argument("--max-shard-size", metavar="SIZE", help="split the weights, as 500MB")
    out.add_argument("--dry-run", action="store_true", help="print the plan; decompose and write nothing")
    out.add_argument("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> int:
    """Compress a checkpoint, or print the plan."""
    from heat_hf.compression.compressor import HeatCompressor
    from heat_hf.compression.config import HeatConfig
    from heat_hf.encoders.checkpoints.storage import check_target
    from heat_hf.encoders.rows import load_rows

    variant = _variant(args)
    if variant is not None:
        args.target_params_ratio = variant.params_ratio
    config = HeatConfig(
        decomposition=args.decomposition,
        target_params_ratio=args.target_params_ratio,
        target_edp_ratio=args.target_edp_ratio,
        target_latency=args.target_latency,
        rank=parse_pairs(args.rank, parse_rank),
        shape=parse_pairs(args.shape, str),
        rank_search=args.rank_search,
        cost_table=args.cost_table,
        modules=args.modules,
        exclude=args.exclude,
        calibration_memory=args.calibration_memory,
        match_variance=args.match_variance,
        seed=args.seed,
        execution=args.execution,
        sequence_length=args.sequence_length,
        batch_size=args.batch_size,
        accelerator=args.accelerator,
    )
    if not args.dry_run:
        if args.output is None:
            raise ValueError("--output is missing: name the folder to save to, or use --dry-run")
        check_target(args.output, args.overwrite)
    rows = load_rows(args.calibration_file, args.calibration_rows) if args.calibration_file else None
    compressor = HeatCompressor.from_pretrained(args.model)
    if args.dry_run:
        report = compressor.plan(config, rows, variant)
    else:
        sharding = {"max_shard_size": args.max_shard_size} if args.max_shard_size else {}
        report = compressor.compress(config, rows, args.output, args.overwrite, variant=variant, **sharding)
    show(args, report.to_dict(), str(report))
    if not args.dry_run:
        print(f"saved to {args.output}; load it with: import heat_hf, then AutoModel….from_pretrained", file=sys.stderr)
    return 0


def _variant(args: argparse.Namespace) -> Variant | None:
    """The variant to take; its record also says which decomposition it is."""
    from heat_hf.reports.ranks import RankRecord

    if args.ranks is None:
        if args.variant is not None:
            raise ValueError("--variant names one of a record's: give --ranks, too")
        return None
    for option in ("target_params_ratio", "target_edp_ratio", "target_latency", "rank", "shape", "cost_table"):
        if getattr(args, option) is not None:
            raise ValueError(f"--ranks has shapes and ranks already: leave out --{option.replace('_', '-')}")
    record = RankRecord.load(args.ranks)
    if args.variant is None:
        raise ValueError(f"--variant is missing: {args.ranks} has {', '.join(v.name for v in record.variants)}")
    return record.variant(args.variant)
