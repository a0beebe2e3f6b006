"""`heat-hf cost`."""

from __future__ import annotations

import argparse
import re
import sys
from typing import TYPE_CHECKING, Any

from heat_hf.cli import options
from heat_hf.cli.values import parse_rank, show
from heat_hf.formats.setting import EXECUTIONS

if TYPE_CHECKING:
    from heat_hf.encoders.cost import Outline
    from heat_hf.hardware.analytic import AnalyticModel
    from heat_hf.hardware.cascade import Cascade
    from heat_hf.hardware.mapper import Mapper

MOST_DIGITS = 60  # of all extents together: int() refuses thousands


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `cost`."""
    what = parser.add_argument_group("what to cost: one of")
    what.add_argument(
        "model", nargs="?", metavar="MODEL", help="Hub id or folder, dense or compressed; only config.json is read"
    )
    what.add_argument("--gemm", metavar="MxNxK", help="a product of M tokens, N outputs and K inputs")
    what.add_argument("--matrix", metavar="OUTxIN", help="a linear layer; dense without --format")
    matrix = parser.add_argument_group("a factorized matrix")
    matrix.add_argument("--format", help="format of the factorization")
    matrix.add_argument("--shape", metavar="S", help="tensorization shape, as 768:12x64 (default: the format's own)")
    matrix.add_argument("--rank", metavar="R", help="an integer, or integers with commas between")
    matrix.add_argument("--execution", default="auto", choices=EXECUTIONS, help="auto: whichever has the lower EDP (default)")
    run = parser.add_argument_group("what is fed, and where it runs")
    options.add_tokens(run)
    options.add_accelerator(run)
    run.add_argument("--constraints", metavar="NAME", help="keep to a part of the mapping space, as timeloop on simba-l")
    run.add_argument("--objective", default="edp", help="edp, energy or latency (default: %(default)s)")
    run.add_argument("--unfused", action="store_true", help="send every intermediate through DRAM")
    run.add_argument("--unpadded", action="store_true", help="fill no operand up with zeros, as Timeloop does not")
    run.add_argument("--count", nargs="+", default=[], metavar="WHAT", help="also count attention, embeddings, elementwise")
    run.add_argument("--whole-blocks", action="store_true", help="also fuse each block of a MODEL, with all between its layers")
    options.add_cache(run, "later runs")
    out = parser.add_argument_group("output")
    options.add_json(out, "the costs")
    out.add_argument("--plot", metavar="FILE", help="draw where energy and cycles go")
    out.add_argument("--export", metavar="TOOL", help="write the product and its mapping for timeloop or accelforge")
    options.add_output(out, "DIR", "where --export writes")
    options.add_overwrite(out)


def run(args: argparse.Namespace) -> int:
    """Cost a product, a matrix or a model."""
    _check(args)
    from heat_hf.hardware.analytic import cost_accelerator
    from heat_hf.reports.cost import describe_mapper

    costs = cost_accelerator(
        args.accelerator, args.constraints, args.objective, not args.unpadded, args.cache, fused=not args.unfused
    )
    accelerator = costs.accelerator
    data, text, parts = (_model if args.model else _product)(args, costs)
    if args.plot:
        from heat_hf.reports.cost import plot_cost

        plot_cost(parts, accelerator, f"{_name(args)} on {accelerator.name}", args.plot)
        print(f"drawn to {args.plot}", file=sys.stderr)
    if args.export:
        _export(args, parts, costs.mapper)
    note = f"{accelerator.name}, digest {accelerator.digest}. {accelerator.technology}"
    show(args, {**describe_mapper(costs.mapper), **data}, f"{text}\n\n{note}")
    return 0


def _check(args: argparse.Namespace) -> None:
    given = [option for option in ("model", "gemm", "matrix") if getattr(args, option) is not None]
    if len(given) != 1:
        raise ValueError(f"name one of MODEL, --gemm and --matrix, got {' and '.join(given) or 'none'}")
    for option in ("count", "whole_blocks"):
        if getattr(args, option) and not args.model:
            raise ValueError(f"--{option.replace('_', '-')} needs a MODEL")
    if args.whole_blocks and args.unfused:
        raise ValueError("--whole-blocks fuses what --unfused sends through DRAM: give one of them")
    _check_factorization(args)
    _check_export(args)


def _check_factorization(args: argparse.Namespace) -> None:
    factorized = [option for option in ("format", "shape", "rank") if getattr(args, option) is not None]
    if factorized and args.matrix is None:
        raise ValueError(f"--{factorized[0]} needs --matrix")
    if factorized and (args.format is None or args.rank is None):
        raise ValueError("a factorized --matrix needs --format and --rank")


def _check_export(args: argparse.Namespace) -> None:
    if not args.export:
        return
    from heat_hf.hardware.export import EXPORTS

    if args.export not in EXPORTS:
        raise ValueError(f"--export must be one of {', '.join(EXPORTS)}, got {args.export!r}")
    if args.model or not args.output:
        raise ValueError("--export needs --gemm or --matrix, and --output for the folder to write")


def _name(args: argparse.Namespace) -> str:
    if args.gemm:
        return f"product {args.gemm}"
    tokens = f"{args.batch_size} × {args.sequence_length} tokens"
    if args.model:
        return f"{args.model}, {tokens}"
    setting = f" {args.format} {args.shape or ''} rank {args.rank}" if args.format else " dense"
    return f"{args.matrix}{setting}, {tokens}"


def _integers(option: str, text: str, names: str) -> list[int]:
    match = re.fullmatch("x".join([r"(\d+)"] * names.count("x")) + r"x(\d+)", text)
    numbers = [] if match is None or len(text) > MOST_DIGITS else [int(group) for group in match.groups()]
    if not numbers or not all(1 <= number <= options.LARGEST for number in numbers):
        raise ValueError(f"{option} must be {names}, integers with x between, from 1 to {options.LARGEST}, got {text!r}")
    return numbers


def _product(args: argparse.Namespace, costs: AnalyticModel) -> tuple[dict[str, Any], str, dict[str, Cascade]]:
    from heat_hf.formats.size import MatrixSize
    from heat_hf.reports.cost import cost_data, level_table, mapping_text, step_parts, step_table, total_line, totals

    cost = _cascade(args, costs)
    lines = [step_table(cost), level_table(cost, costs.accelerator), mapping_text(cost), total_line("total", cost)]
    data = cost_data(cost)
    if args.format:
        size = MatrixSize(*_integers("--matrix", args.matrix, "OUTxIN"))
        dense = costs.cascade_of(size, args.sequence_length * args.batch_size)
        data["dense"] = totals(dense)
        lines.append(f"{total_line('dense', dense)}\nEDP of dense: {cost.edp / dense.edp:.4f}")
    return data, "\n\n".join(lines), step_parts(cost)


def _cascade(args: argparse.Namespace, model: AnalyticModel) -> Cascade:
    from heat_hf.formats import TensorShape, get_format
    from heat_hf.formats.setting import TensorSetting
    from heat_hf.formats.size import MatrixSize
    from heat_hf.hardware.cascade import cost_gemm
    from heat_hf.hardware.gemm import Gemm

    if args.gemm:
        m, n, k = _integers("--gemm", args.gemm, "MxNxK")
        return cost_gemm(Gemm(m, n, k), model.mapper)
    size = MatrixSize(*_integers("--matrix", args.matrix, "OUTxIN"))
    tokens = args.sequence_length * args.batch_size
    if not args.format:
        return model.cascade_of(size, tokens)
    codec = get_format(args.format)
    shape = TensorShape.parse(args.shape, *size) if args.shape else codec.default_shape(*size)
    setting = TensorSetting(args.format, shape, codec.parse_rank(shape, parse_rank(args.rank)), args.execution)
    return model.cascade_of(setting, tokens)


def _model(args: argparse.Namespace, costs: AnalyticModel) -> tuple[dict[str, Any], str, dict[str, Cascade]]:
    from heat_hf.encoders.around import EXTRAS
    from heat_hf.encoders.cost import model_cost, outline
    from heat_hf.reports.cost import layer_table, level_table, model_data, model_parts, total_line

    own = outline(args.model)
    cost = model_cost(own, costs, args.sequence_length, args.batch_size, args.count)
    total, dense = cost.total, cost.dense
    lines = [layer_table(cost), level_table(total, costs.accelerator), total_line("total", total)]
    left_out = [name for name in EXTRAS if name not in args.count]
    if cost.factorized:
        gain = f"EDP gain: {dense.edp / total.edp:.2f}×"
        if left_out:
            every = model_cost(own, costs, args.sequence_length, args.batch_size, EXTRAS)
            gain += f", of the whole model {every.dense.edp / every.total.edp:.2f}×"
        lines.append(f"{total_line('dense', dense)}\n{gain}")
    if left_out:
        lines.append(f"Linear layers of the Transformer blocks. Not counted: {', '.join(left_out)}; see --count.")
    data = {**model_data(cost), "not_counted": left_out}
    if args.whole_blocks:
        fused, text = _whole_blocks(args, own, costs)
        data["whole_blocks"] = fused
        lines.append(text)
    return data, "\n\n".join(lines), model_parts(cost)


def _whole_blocks(args: argparse.Namespace, own: Outline, costs: AnalyticModel) -> tuple[dict[str, Any], str]:
    """Every block as one cascade, beside the sum of the same work layer by layer."""
    from heat_hf.encoders.around import IN_BLOCKS
    from heat_hf.encoders.cost import model_cost
    from heat_hf.encoders.flow import fused_model
    from heat_hf.reports.cost import fused_data, step_table, total_line

    fed = args.sequence_length, args.batch_size
    now, dense = fused_model(own, costs, *fed)
    apart = model_cost(own, costs, *fed, IN_BLOCKS).total
    kinds = "\n\n".join(f"{step_table(kind.cascade, f'{kind.count} blocks like this')}" for kind in now.kinds)
    lines = [total_line("blocks, fused", now.total), total_line("the same layer by layer", apart)]
    if now.total.edp != dense.total.edp:
        lines.append(f"{total_line('dense blocks, fused', dense.total)}\nEDP gain: {dense.total.edp / now.total.edp:.2f}×")
    return {**fused_data(now), "dense": fused_data(dense)}, "\n\n".join([kinds, "\n".join(lines)])


def _export(args: argparse.Namespace, parts: dict[str, Cascade], mapper: Mapper) -> None:
    from heat_hf.encoders.checkpoints.storage import atomic_directory
    from heat_hf.hardware.export import EXPORTS

    with atomic_directory(args.output, args.overwrite) as folder:
        for i, part in enumerate(parts.values(), start=1):
            target = folder if len(parts) == 1 else folder / f"step-{i}"
            target.mkdir(exist_ok=True)
            for name, text in EXPORTS[args.export](part.steps[0].mapped, mapper.accelerator, mapper.constraints).items():
                (target / name).write_text(text)
    print(f"written to {args.output}", file=sys.stderr)
