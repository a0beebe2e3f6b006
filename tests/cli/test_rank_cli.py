"""`heat-hf search ranks`, `compress --ranks` and `report` of what was found, and the pictures they draw."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib.image
import pytest
import torch
import transformers
from conftest import small_model, token_ids

from heat_hf.cli import main, ranks
from heat_hf.encoders.linears import factorized_layers
from heat_hf.reports.figures.ranks import draw_ablation, draw_fidelity, draw_rank_map
from heat_hf.reports.figures.tradeoff import Panel, draw_tradeoff
from heat_hf.reports.ranks import RankRecord
from heat_hf.search.ranks.evolution import Evolution
from heat_hf.search.ranks.supernet import SuperNetArguments

SENTENCES = [
    f"The {a} {b} the {c}." for a in ("dog", "child", "train") for b in ("sees", "passes") for c in ("bridge", "house")
]


@pytest.fixture
def checkpoint(tmp_path: Path, minilm: str) -> Path:
    """A small random BERT with the real tokenizer, and sentences beside it."""
    model, tokenizer = small_model("bert"), transformers.AutoTokenizer.from_pretrained(minilm)
    model.resize_token_embeddings(len(tokenizer))
    for saved in (model, tokenizer):
        saved.save_pretrained(tmp_path / "dense")
    (tmp_path / "sentences.txt").write_text("\n".join(SENTENCES))
    (tmp_path / "rows.csv").write_text("sentence,label\n" + "\n".join(f"{s},{i % 2}" for i, s in enumerate(SENTENCES)))
    return tmp_path / "dense"


def search(checkpoint: Path, *options: str) -> list[str]:
    data = str(checkpoint.parent / "sentences.txt")
    return ["search", "ranks", str(checkpoint), "--calibration-file", data, "--sequence-length", "16", *options]


@pytest.fixture
def record(checkpoint: Path) -> Path:
    """The record of a search with two variants."""
    path = checkpoint.parent / "ranks.json"
    assert main(search(checkpoint, "--target-edp-ratio", "0.8", "0.65", "--output", str(path))) == 0
    return path


def test_search_prints_the_record(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = checkpoint.parent / "ranks.json"
    assert main(search(checkpoint, "--target-edp-ratio", "0.8", "0.65", "--output", str(path), "--json")) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == RankRecord.load(path).to_dict()
    assert [variant.name for variant in RankRecord.load(path).variants] == ["HEAT-a1", "HEAT-a2"]
    assert "--variant HEAT-a1" in captured.err


def test_compress_with_a_variant(checkpoint: Path, record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, variant = str(checkpoint.parent / "out"), RankRecord.load(record).variant("HEAT-a2")
    command = ["compress", str(checkpoint), "--ranks", str(record), "--variant", "HEAT-a2", "--sequence-length", "16"]
    command += ["--calibration-file", str(checkpoint.parent / "sentences.txt")]
    assert main([*command, "--dry-run"]) == 0
    assert "EDP" in capsys.readouterr().out
    assert main([*command, "--output", out, "--json"]) == 0
    hardware = json.loads(capsys.readouterr().out)["total"]["hardware"]
    assert hardware["edp_J_s"] / hardware["dense_edp_J_s"] == pytest.approx(variant.edp_ratio)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(out)
    factorized = {name: setting for name, setting in variant.settings.items() if setting}
    assert {name: layer.setting for name, layer in factorized_layers(model).items()} == factorized


def test_report_ranks_draws(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = record.with_name("drawn")
    assert main(["report", str(record), "--output", str(drawn)]) == 0
    assert "HEAT-a1" in capsys.readouterr().out
    assert {file.name for file in drawn.iterdir()} == {"ranks.html", "ranks.png", "figure-12.png"}


def test_search_by_supernet(checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def by_size(quality: object, model: torch.nn.Module) -> float:
        """A random model's accuracy is noise, which a predictor is not trusted with."""
        return sum(layer.active.ratio for layer in factorized_layers(model).values()) / 12

    monkeypatch.setattr("heat_hf.evaluation.quality.Quality.__call__", by_size)
    record = checkpoint.parent / "ranks.json"
    rows = str(checkpoint.parent / "rows.csv")
    options = ["--rank-search", "supernet", "--eval-file", rows, "--steps", "2", "--subnets", "30", "--train-batch-size", "4"]
    more = ["--prior", "--variance", "weight", "--hold", "4", "--spread", "0.1", "--gamma", "0.5", "--population", "64"]
    more += ["--generations", "5", "--elite", "0.25", "--mutation", "0.1", "--hidden-weight", "3", "--least-share", "0.05"]
    assert main(search(checkpoint, *options, *more, "--target-edp-ratio", "0.9", "--output", str(record))) == 0
    assert "predicted accuracy" in capsys.readouterr().out
    key = RankRecord.load(record).key
    assert key["supernet"]["prior"] and key["supernet"]["hold"] == 4 and key["supernet"]["variance"] == "weight"
    assert key["evolution"] == {
        "population": 64, "generations": 5, "elite": 0.25, "mutation": 0.1, "gamma": 0.5, "seed": 0,
    }  # fmt: skip
    assert main(["report", str(record), "--output", str(checkpoint.parent / "drawn")]) == 0
    assert {file.name for file in (checkpoint.parent / "drawn").iterdir()} == {
        "ranks.html", "ranks.png", "figure-9.png", "figure-12.png",
    }  # fmt: skip
    assert not record.with_name("ranks.json.partial").exists()


def test_defaults_are_those_of_the_api() -> None:
    parser = argparse.ArgumentParser()
    ranks.add_arguments(parser)
    given = parser.parse_args(["model", "--output", "ranks.json"])
    for defaults, names in (
        (
            SuperNetArguments(use_cpu=True),
            ("hidden_weight", "least_share", "largest_share", "hold", "spread", "variance", "prior"),
        ),
        (Evolution(), ("gamma", "population", "generations", "elite", "mutation")),
    ):
        assert {name: getattr(given, name) for name in names} == {name: getattr(defaults, name) for name in names}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target-edp-ratio", "1.2"], "--target-edp-ratio: must be between 0 and 1"),
        (["--target-edp-ratio", "0.00001"], "must lie between"),
        ([], "exactly one of target_params_ratio, target_edp_ratio, target_latency_ratio, target_latency and rank"),
        (["--target-edp-ratio", "0.5", "--rank-search", "pareto"], "--rank-search must be one of"),
        (
            ["--target-edp-ratio", "0.5", "--rank-search", "supernet", "--steps", "0"],
            "argument --steps: must be a whole number from 1",
        ),
        (["--target-edp-ratio", "0.5", "--decomposition", "svd"], "unknown decomposition 'svd'"),
        (
            ["--target-edp-ratio", "0.5", "--decomposition", "mixed", "--rank-search", "uniform"],
            "needs rank_search='sensitivity'",
        ),
    ],
)
def test_bad_input_to_the_search(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    record = checkpoint.parent / "ranks.json"
    assert main(search(checkpoint, *options, "--output", str(record))) == 2
    assert message in capsys.readouterr().err
    assert not list(checkpoint.parent.glob("ranks*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ranks", "{record}"], "--variant is missing: {record} has HEAT-a1"),
        (["--variant", "HEAT-a1"], "--variant names one of a record's: give --ranks, too"),
        (["--ranks", "{record}", "--variant", "HEAT-a7"], "no variant 'HEAT-a7'"),
        (["--ranks", "{record}", "--variant", "HEAT-a1", "--rank", "4"], "leave out --rank"),
        (["--ranks", "missing.json", "--variant", "HEAT-a1"], "no rank record missing.json"),
    ],
)
def test_bad_input_to_compress(checkpoint: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    record = str(checkpoint.parent / "ranks.json")
    assert main(search(checkpoint, "--rank-search", "uniform", "--target-edp-ratio", "0.8", "--output", record)) == 0
    capsys.readouterr()
    command = ["compress", str(checkpoint), *(option.format(record=record) for option in options), "--dry-run"]
    assert main(command) == 2
    assert message.format(record=record) in capsys.readouterr().err


def test_pictures(tmp_path: Path) -> None:
    """They can be read, and are not empty; people looked at the ones in docs/figures."""
    points = [(0.8 + i / 100, 0.81 + i / 120) for i in range(10)]
    draw_fidelity(points, tmp_path / "a.png", (0.9, 0.8))
    draw_fidelity(points, tmp_path / "b.png", (0.9, 0.8), points)
    draw_ablation({"full": [0.8, 0.9, 0.85], "less": [0.7, 0.8, 0.75]}, tmp_path / "c.png", "title")
    method = {"searched": [(0.1, 0.8), (0.3, 0.9)], "random": points}
    draw_tradeoff([Panel("before", "accuracy", method, 0.9), Panel("after", "accuracy", method)], tmp_path / "d.png", "title")
    for name in "abcd":
        image = matplotlib.image.imread(tmp_path / f"{name}.png")
        assert image.shape[0] > 300
        assert image.std() > 0.02


def test_rank_map_of_mixed_formats(tmp_path: Path) -> None:
    from heat_hf import HeatConfig
    from heat_hf.compression.job import Job

    config = HeatConfig(decomposition="mixed", rank_search="sensitivity", target_edp_ratio=[0.8, 0.7], sequence_length=16)
    record = Job(small_model("bert"), config, [{"input_ids": token_ids(24, 6)}]).search()
    draw_rank_map(record, tmp_path / "map.png")
    assert matplotlib.image.imread(tmp_path / "map.png").std() > 0.02
