"""`heat-hf search ranks`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from heat_hf.cli import options
from heat_hf.cli.values import heat_config, loading, rows_of, show, statistics_of
from heat_hf.formats import FORMATS
from heat_hf.search.ranks.methods import MIXED, RANK_SEARCHES

if TYPE_CHECKING:
    from heat_hf.search.ranks.supernet import SuperNetArguments

METHODS = tuple(name for name, method in RANK_SEARCHES.items() if not method.needs_table)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `search ranks`."""
    parser.add_argument("model", help="Hub id or folder of the dense checkpoint")
    what = parser.add_argument_group("what is searched")
    what.add_argument(
        "--rank-search", metavar="METHOD", default="sensitivity", help=f"{', '.join(METHODS)} (default: %(default)s)"
    )
    what.add_argument("--decomposition", default="low_rank", help=f"{', '.join(FORMATS)}, {MIXED} (default: %(default)s)")
    targets = {
        "edp-ratio": "EDP of all tensors to keep, 0 < R < 1; several give a variant each",
        "params-ratio": "parameters to keep instead",
        "latency-ratio": "time of all matrices on the accelerator to keep instead, 0 < R < 1",
        "latency": "the same in seconds",
    }
    options.add_targets(what, targets, several=True)
    options.add_joint(what)
    options.add_shape(what)
    options.add_cost_table(what, "for shapes")
    options.add_matrices(what, "choose for", "alone")
    options.add_seed(what)
    data = parser.add_argument_group("data, a .txt, .parquet, .csv, .tsv, .json or .jsonl file each")
    options.add_rows(data, "calibration", "sentences like those the model will see", 2048)
    options.add_statistics(data)
    options.add_rows(data, "train", "to distil the SuperNet on (default: the calibration file)")
    options.add_rows(data, "eval", "to score SubNets on, with a column label or without", 1000)
    train = parser.add_argument_group("the SuperNet")
    train.add_argument("--steps", type=options.COUNT, default=600, metavar="N", help="of its training (default: %(default)s)")
    train.add_argument("--train-batch-size", type=options.COUNT, default=32, metavar="B", help="default: %(default)s")
    train.add_argument("--learning-rate", type=options.real(0, 1), default=1e-4, metavar="R", help="default: %(default)s")
    train.add_argument(
        "--subnets", type=options.COUNT, metavar="N", help="SubNets to evaluate (default: 200 for each core, said)"
    )
    train.add_argument(
        "--without", nargs="+", default=[], metavar="STABILIZER",
        help="leave some out, to see what they are worth: first_slices, bounded_change, sandwich, normalized_variance",
    )  # fmt: skip
    _add_numbers(train, _TRAINING)
    train.add_argument(
        "--variance", default="projected", metavar="TARGET",
        help="what W′'s is normalized to: projected, its own before training, or weight, W's (default: %(default)s)",
    )  # fmt: skip
    train.add_argument(
        "--prior", action="store_true",
        help="predict from what the calibration data says that ranks lose, as sensitivity does, and let the forest correct it",
    )  # fmt: skip
    _add_numbers(parser.add_argument_group("the evolution"), _EVOLUTION)
    run = parser.add_argument_group("what is fed, and the hardware")
    options.add_tokens(run)
    options.add_accelerator(run, "hardware, cpu for this machine; ")
    options.add_runtime(run)
    options.add_loading(parser.add_argument_group("loading"))
    out = parser.add_argument_group("output")
    options.add_output(out, "RECORD", "JSON file; an interrupted search goes on from there", required=True)
    options.add_overwrite(out, "another record")
    options.add_json(out, "what was found")


# Name, kind, default and meaning of what is passed on under the same name.
_TRAINING = (
    ("hidden_weight", options.real(0, 1e6), 10.0, "of the hidden states' distance beside the outputs' divergence"),
    ("least_share", options.real(0, 1), 0.06, "parameters of the smallest ranks, of the matrix's"),
    ("largest_share", options.real(0, 1), 0.8, "of the largest"),
    ("hold", options.COUNT, 8, "steps until the bounded change turns to another SubNet"),
    ("spread", options.real(0, 10), 0.2, "of tensors' places among their ranks, around the SubNet's"),
)
_EVOLUTION = (
    ("gamma", options.real(0, 10), 0.25, "γ of (1 − Acc)(E·T)^γ, where there is no budget"),
    ("population", options.COUNT, 1024, "networks of a generation"),
    ("generations", options.COUNT, 60, "that are bred"),
    ("elite", options.real(0, 1), 0.125, "part of a generation that goes on and breeds"),
    ("mutation", options.real(0, 1), 0.08, "probability that a tensor's rank changes"),
)


def _add_numbers(group: Any, numbers: tuple[tuple[str, Any, float, str], ...]) -> None:  # noqa: ANN401
    for name, kind, default, meaning in numbers:
        flag = f"--{name.replace('_', '-')}"
        group.add_argument(flag, type=kind, default=default, metavar="N", help=f"{meaning} (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Find ranks for every budget, and print them."""
    from heat_hf.compression.compressor import HeatCompressor

    if args.rank_search not in METHODS:
        raise ValueError(f"--rank-search must be one of {', '.join(METHODS)}, got {args.rank_search!r}")
    config = heat_config(args)
    rows = {f"{name}_dataset": rows_of(args, name) for name in ("calibration", "train", "eval")}
    supernet: dict[str, Any] = _trained(args) if RANK_SEARCHES[args.rank_search].needs_training else {}
    compressor = HeatCompressor.from_pretrained(args.model, **loading(args))
    supernet["statistics"] = statistics_of(args, compressor, config, rows["calibration_dataset"])
    record = compressor.search_ranks(config, output=args.output, overwrite=args.overwrite, **rows, **supernet)
    show(args, record.to_dict(), str(record))
    first = record.variants[0].name
    print(
        f"saved to {args.output}; compress with: heat-hf compress {args.model} --ranks {args.output} --variant {first} …",
        file=sys.stderr,
    )
    return 0


def _trained(args: argparse.Namespace) -> dict[str, Any]:
    """How a SuperNet is trained, and how its networks are bred."""
    from heat_hf.search.ranks.evolution import Evolution

    bred = Evolution(**{name: getattr(args, name) for name, *_ in _EVOLUTION}, seed=args.seed)
    return {"arguments": _arguments(args), "evolution": bred}


def _arguments(args: argparse.Namespace) -> SuperNetArguments:
    from heat_hf.search.ranks.supernet import SuperNetArguments, default_subnets

    subnets = args.subnets or default_subnets()
    if args.subnets is None:
        print(f"evaluating {subnets} SubNets, 200 for each core; the paper takes 2,560 (--subnets)", file=sys.stderr)
    return SuperNetArguments(
        max_steps=args.steps,
        per_device_train_batch_size=args.train_batch_size,
        learning_rate=args.learning_rate,
        warmup_steps=max(1, args.steps // 10),
        subnets=subnets,
        without=args.without,
        variance=args.variance,
        prior=args.prior,
        **{name: getattr(args, name) for name, *_ in _TRAINING},
        seed=args.seed,
    )
