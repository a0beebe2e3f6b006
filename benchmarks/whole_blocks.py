"""EDP of matrices alone, of all that blocks do layer by layer, and of blocks fused whole.

Of dense models, and of compressed ones beside theirs.

python -m benchmarks.whole_blocks --compressed NAME=FOLDER … --output benchmarks/results/whole_blocks.json
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel

import heat_hf  # noqa: F401
from benchmarks.provenance import captioned, provenance, source_line
from heat_hf.encoders.around import IN_BLOCKS
from heat_hf.encoders.cost import model_cost
from heat_hf.encoders.flow import fused_model
from heat_hf.hardware import units
from heat_hf.hardware.analytic import AnalyticModel, cost_accelerator
from recipes.demo.run import find_model
from recipes.evidence import write_json


def row(name: str, model: PreTrainedModel | str, costs: AnalyticModel, length: int) -> dict[str, Any]:
    """A model's EDPs in J·s and gains over its dense model, by what is counted."""
    alone, apart = (model_cost(model, costs, length, 1, count) for count in ((), IN_BLOCKS))
    now, dense = fused_model(model, costs, length)
    pairs = {"matrices": (alone.total, alone.dense), "layers": (apart.total, apart.dense), "fused": (now.total, dense.total)}
    found = {what: {"edp": own.edp, "gain": before.edp / own.edp} for what, (own, before) in pairs.items()}
    return {"model": name, "tokens": length, "compressed": alone.factorized, **found}


def table(data: dict[str, Any]) -> str:
    """A row for each model and length: EDP, and for compressed models the gain over the dense one."""
    lines = [
        f"| model | tokens | matrices, {units.EDP.name} | all, layer by layer | all, blocks fused |",
        "|---|---:|---:|---:|---:|",
    ]
    for own in data["rows"]:
        cells = (
            f"{units.EDP.of(own[what]['edp']):.4g}" + (f" ({own[what]['gain']:.2f}×)" if own["compressed"] else "")
            for what in ("matrices", "layers", "fused")
        )
        lines.append(f"| {own['model']} | {own['tokens']} | {' | '.join(cells)} |")
    caption = (
        "EDP of the blocks of one sequence on simba-l; in brackets the gain over the dense model, counted alike. All: with "
        "attention's products, softmax, activation, residuals and normalization."
    )
    return captioned(lines, caption, source_line(data))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compressed", nargs="*", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--lengths", nargs="+", type=int, default=[128, 384])
    parser.add_argument("--cache", type=Path, help="folder of mappings")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/whole_blocks.json"))
    args = parser.parse_args()
    costs, rows = cost_accelerator("simba-l", cache=args.cache), []
    with torch.device("meta"):
        base = AutoModel.from_config(AutoConfig.for_model("bert"))
    models = {"MiniLM": find_model(online=False), **dict(own.split("=", 1) for own in args.compressed), "BERT-base": base}
    for name, model in models.items():
        for length in args.lengths:
            rows.append(row(name, model, costs, length))
            print(rows[-1], flush=True)
    command = "python -m benchmarks.whole_blocks --compressed NAME=FOLDER … --output FILE"
    write_json(args.output, {**provenance(command, "transformers"), "rows": rows})


if __name__ == "__main__":
    main()
