"""`heat-hf compress`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from heat_hf.cli import options
from heat_hf.cli.values import heat_config, loading, rows_of, show, statistics_of
from heat_hf.compression.config import CALIBRATION_MEMORY
from heat_hf.formats import FORMATS, OPERATORS
from heat_hf.formats.setting import EXECUTIONS
from heat_hf.search.ranks.budgets import TARGETS
from heat_hf.search.ranks.methods import RANK_SEARCHES

if TYPE_CHECKING:
    from heat_hf.reports.compression import CompressionReport
    from heat_hf.search.ranks.variants import Variant


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `compress`."""
    parser.add_argument("model", help="Hub id or folder of the dense checkpoint")
    size = parser.add_argument_group("what to factorize, and how far")
    size.add_argument("--decomposition", default="low_rank", help=f"{', '.join((*FORMATS, *OPERATORS))} (default: %(default)s)")
    targets = {
        "params-ratio": "parameters to keep, 0 < R < 1",
        "edp-ratio": "EDP of all matrices to keep instead, 0 < R < 1",
        "latency-ratio": "time of all matrices on the accelerator to keep instead, 0 < R < 1",
        "latency": "the same in seconds",
    }
    options.add_targets(size, targets)
    size.add_argument("--ranks", metavar="RECORD", help="take what heat-hf search ranks found")
    size.add_argument("--variant", metavar="NAME", help="which of its variants, as HEAT-a1")
    size.add_argument("--rank", nargs="+", metavar="[SIZE=]R", help="rank instead: 64, or 16,24,80, or 384x1536=96 …")
    options.add_shape(size)
    size.add_argument("--rank-search", default="uniform", help=f"{', '.join(RANK_SEARCHES)} (default: %(default)s)")
    options.add_joint(size)
    options.add_embedding(size)
    options.add_tiles(size)
    options.add_cost_table(size, "for shapes and for pareto")
    options.add_matrices(size)
    how = parser.add_argument_group("calibration and decomposition")
    options.add_rows(how, "calibration", "sentences for the activation-aware projection", 4096, "rows of it to use")
    options.add_statistics(how)
    how.add_argument(
        "--calibration-memory", default="model", choices=CALIBRATION_MEMORY,
        help="where moments are: model, all in memory; disk, in files of TMPDIR; layer, one block's at a time, with a pass for "
        "each, for methods that need no calibration (default: %(default)s)",
    )  # fmt: skip
    text = "optimizer steps on every block, towards the dense block's outputs; 0 for none (default: %(default)s)"
    how.add_argument("--refine-steps", type=options.whole(0), default=100, metavar="N", help=text)
    how.add_argument("--match-variance", action="store_true", help="scale W' to the variance of W")
    options.add_seed(how)
    run = parser.add_argument_group("execution")
    run.add_argument("--execution", default="auto", choices=EXECUTIONS, help="default: %(default)s")
    options.add_tokens(run)
    options.add_accelerator(run, "hardware, cpu for this machine; ")
    options.add_runtime(run)
    options.add_loading(parser.add_argument_group("loading"))
    out = parser.add_argument_group("output")
    options.add_output(out, "DIR", "where to save; appears only when all is done")
    options.add_overwrite(out)
    out.add_argument("--max-shard-size", metavar="SIZE", help="split the weights, as 500MB")
    out.add_argument("--dry-run", action="store_true", help="print the plan; write nothing")
    options.add_json(out, "the report")


def run(args: argparse.Namespace) -> int:
    """Compress a checkpoint, or print the plan."""
    report = compressed(args)
    show(args, report.to_dict(), str(report))
    if not args.dry_run:
        print(f"saved to {args.output}; load it with: import heat_hf, then AutoModel….from_pretrained", file=sys.stderr)
    return 0


def compressed(args: argparse.Namespace) -> CompressionReport:
    """The same, with nothing printed."""
    from heat_hf.compression.compressor import HeatCompressor
    from heat_hf.encoders.checkpoints.storage import check_target

    variant = _variant(args)
    if variant is not None:
        args.target_params_ratio = variant.params_ratio
    config = heat_config(args)
    if not args.dry_run:
        if args.output is None:
            raise ValueError("--output is missing: name the folder to save to, or use --dry-run")
        check_target(args.output, args.overwrite)
    rows = rows_of(args, "calibration")
    compressor = HeatCompressor.from_pretrained(args.model, **loading(args))
    statistics = statistics_of(args, compressor, config, rows)
    if args.dry_run:
        return compressor.plan(config, rows, variant, statistics=statistics)
    sharding = {"max_shard_size": args.max_shard_size} if args.max_shard_size else {}
    given = {"statistics": statistics, "variant": variant, **sharding}
    return compressor.compress(config, rows, args.output, args.overwrite, **given)


def _variant(args: argparse.Namespace) -> Variant | None:
    """The variant to take; its record also says which decomposition it is."""
    from heat_hf.reports.ranks import RankRecord

    if args.ranks is None:
        if args.variant is not None:
            raise ValueError("--variant names one of a record's: give --ranks, too")
        return None
    for option in (*TARGETS, "rank", "shape", "cost_table"):
        if getattr(args, option) is not None:
            raise ValueError(f"--ranks has shapes and ranks already: leave out --{option.replace('_', '-')}")
    record = RankRecord.load(args.ranks)
    if args.variant is None:
        raise ValueError(f"--variant is missing: {args.ranks} has {', '.join(v.name for v in record.variants)}")
    return record.variant(args.variant)
