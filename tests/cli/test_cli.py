"""The command line: exit codes, JSON, dry runs, bad input, and `optimum-cli heat` on the same code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import SENTENCES

import heat_hf
from heat_hf.cli import VERBS, build_parser, main


def printed(arguments: list[object], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What a command that succeeds prints with `--json`."""
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def compress(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Path, dict[str, Any]]:
    """The folder of the compressed model, and its report."""
    out, sentences = checkpoint.parent / "out", checkpoint.parent / "sentences.txt"
    options = ["--decomposition", "ttm", "--target-params-ratio", "0.6", "--calibration-file", sentences, "--output", out]
    return out, printed(["compress", checkpoint, *options], capsys)


def test_compress_and_report(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, report = compress(checkpoint, capsys)
    assert report["total"]["params_ratio"] <= 0.6
    assert report["calibration_rows"] == 4
    assert printed(["report", out], capsys) == report
    assert main(["report", str(out)]) == 0
    assert "bert.encoder.layer.0.attention.self.query" in capsys.readouterr().out


def test_statistics_are_kept_and_used_again(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first command collects them, the second, at another budget, takes them without calibration data."""
    kept, sentences = checkpoint.parent / "statistics.safetensors", checkpoint.parent / "sentences.txt"
    command = ["compress", checkpoint, "--statistics", kept, "--dry-run", "--rank-search", "sensitivity"]
    assert main([*map(str, command), "--target-edp-ratio", "0.95"]) == 2
    assert "is not there: give --calibration-file" in capsys.readouterr().err
    first = printed([*command, "--target-edp-ratio", "0.95", "--calibration-file", sentences], capsys)
    assert kept.is_file()
    again = printed([*command, "--target-edp-ratio", "0.95"], capsys)
    assert again["tensors"] == first["tensors"]
    smaller = printed([*command, "--target-edp-ratio", "0.85"], capsys)
    assert smaller["total"]["hardware"]["edp_J_s"] < first["total"]["hardware"]["edp_J_s"]


def test_as_many_refine_steps_as_in_a_configuration() -> None:
    args = build_parser().parse_args(["compress", "model"])
    assert args.refine_steps == heat_hf.HeatConfig(rank=1).refine_steps


def test_refine_steps(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, sentences = checkpoint.parent / "out", checkpoint.parent / "more.txt"
    sentences.write_text("\n".join(f"{text} And {number} more." for text in SENTENCES for number in range(10)))
    command = ["compress", checkpoint, "--target-params-ratio", "0.6", "--calibration-file", sentences, "--output", out]
    report = printed([*command, "--refine-steps", "3"], capsys)
    assert report["refinement"]["steps"] == 3
    assert [block["name"] for block in report["refinement"]["blocks"]] == ["bert.encoder.layer.0", "bert.encoder.layer.1"]
    assert printed(["report", out], capsys) == report
    assert printed([*command, "--overwrite", "--refine-steps", "0"], capsys)["refinement"] is None
    assert main([*map(str, command), "--refine-steps", "-1"]) == 2
    assert "--refine-steps: must be a whole number from 0 to" in capsys.readouterr().err


def test_evaluate_beside_the_dense_model(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, report = compress(checkpoint, capsys)
    data = checkpoint.parent / "labels.csv"
    command = ["evaluate", out, "--task", "text-classification", "--data", data, "--baseline", checkpoint]
    scores = printed([*command, "--latency"], capsys)
    assert set(scores) == {str(out), str(checkpoint)}
    compressed = scores[str(out)]
    assert 0 <= compressed["accuracy"] <= 1
    assert compressed["rows"] == 4
    assert compressed["parameters"] == report["total"]["compressed_model_parameters"]
    assert compressed["latency_s"]["lower"] <= compressed["latency_s"]["median"]
    assert main([*map(str, command), "--rows", "2"]) == 0
    assert "accuracy" in capsys.readouterr().out


def test_evaluate_similarity(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = checkpoint.parent / "pairs.tsv"
    scores = printed(["evaluate", checkpoint, "--task", "sentence-similarity", "--data", pairs], capsys)
    assert -1 <= scores[str(checkpoint)]["spearman"] <= 1


def test_options_reach_the_configuration(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compress", str(checkpoint), "--decomposition", "tucker", "--dry-run", "--json", "--exclude", "query"]
    command += ["--shape", "24x24=24:4x6", "48x24=48:24", "24x48=24:48", "--rank", "24x24=8,4,6", "48x24=7", "24x48=5"]
    assert main([*command, "--sequence-length", "32", "--batch-size", "4", "--execution", "contract"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["tokens"] == 128
    assert len(report["tensors"]) == 10
    first = report["tensors"][0]["setting"]
    assert first == {"format": "tucker", "shape": [[24], [4, 6]], "rank": [8, 4, 6], "execution": "contract"}


def test_dry_run_decomposes_and_writes_nothing(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("decomposed")

    monkeypatch.setattr("heat_hf.compression.projecting.decompose", refuse)
    before = sorted(checkpoint.parent.rglob("*"))
    out = str(checkpoint.parent / "out")
    assert main(["compress", str(checkpoint), "--target-params-ratio", "0.5", "--output", out, "--dry-run"]) == 0
    assert "12 matrices, before" in capsys.readouterr().out
    assert sorted(checkpoint.parent.rglob("*")) == before


def test_sharded_output(checkpoint: Path) -> None:
    out = checkpoint.parent / "out"
    assert main(["compress", str(checkpoint), "--rank", "4", "--output", str(out), "--max-shard-size", "1MB"]) == 0
    assert (out / "heat_model.safetensors.index.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compress", "{model}", "--output", "{out}"], "exactly one of target_params_ratio, target_edp_ratio, target_latency"),
        (["compress", "{model}", "--target-params-ratio", "1.2", "--output", "{out}"], "between 0 and 1"),
        (["compress", "{model}", "--target-params-ratio", "0.5"], "--output is missing"),
        (["compress", "{model}", "--target-params-ratio", "0.5", "--output", "{model}"], "is not empty; pass overwrite"),
        (["compress", "{model}", "--decomposition", "svd", "--rank", "2", "--output", "{out}"], "unknown decomposition"),
        (["compress", "{model}", "--rank", "many", "--output", "{out}"], "--rank must be an integer"),
        (["compress", "{model}", "--rank", "4", "24x24=3", "--output", "{out}"], "SIZE=VALUE"),
        (["compress", "{model}/nowhere", "--rank", "4", "--output", "{out}"], "nowhere"),
        (["compress", "{model}", "--rank", "4", "--output", "{out}", "--calibration-file", "no.txt"], "no data file no.txt"),
        (
            ["compress", "{model}", "--rank", "4", "--output", "{out}", "--calibration-file", "{model}/config.yaml"],
            "no data file",
        ),
        (["evaluate", "{model}", "--task", "chess", "--data", "x.csv"], "unknown task 'chess'"),
        (["evaluate", "{model}", "--task", "text-classification", "--data", "x.csv"], "no data file x.csv"),
        (["evaluate", "{model}", "--task", "sentence-similarity", "--data", "{model}/../labels.csv"], "no column 'sentence1'"),
        (["evaluate", "{model}", "--task", "text-classification", "--data", "{model}/tokenizer.bin"], "no data file"),
        (["report", "{model}/.."], "has no heat_report.json"),
    ],
)
def test_bad_input(checkpoint: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    out = checkpoint.parent / "out"
    assert main([a.format(model=checkpoint, out=out) for a in arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert not captured.out
    assert not out.exists()


def test_usage_errors_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["fly"], ["compress"], ["compress", "m", "--execution", "fast"]):
        assert main(arguments) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_help_says_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    for name, verb in VERBS.items():
        assert verb.help in build_parser().format_help()
        with pytest.raises(SystemExit) as stop:
            main([name, "--help"])
        assert stop.value.code == 0
    capsys.readouterr()


def test_optimum_cli(checkpoint: Path) -> None:
    pytest.importorskip("optimum")
    program = Path(sys.executable).with_name("optimum-cli")
    out = checkpoint.parent / "out"
    arguments = ["heat", "compress", str(checkpoint), "--rank", "4", "--output", str(out)]
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "12 matrices, before" in done.stdout
    assert (out / "heat_model.safetensors").exists()
    bad = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert bad.returncode == 2
    assert "optimum-cli heat: " in bad.stderr
    assert "not empty" in bad.stderr
    version = subprocess.run([program, "heat", "--version"], capture_output=True, text=True, check=True)
    assert version.stdout == f"heat-hf {heat_hf.__version__}\n"


def search_shapes(checkpoint: Path) -> list[str]:
    """The command of a short search, whose table is beside the checkpoint."""
    space = ["--formats", "low_rank", "ttm", "--orders", "2", "3", "--top-k", "1", "--budgets", "2", "--layers", "all"]
    run = ["--sequence-length", "32", "--workers", "1", "--output", str(checkpoint.parent / "table.parquet")]
    return ["search", "shapes", str(checkpoint), *space, *run]


def test_search_shapes(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = printed(search_shapes(checkpoint), capsys)["sizes"]
    assert set(sizes) == {"24x24", "48x24", "24x48"}
    assert set(sizes["24x24"]["selected"]) == {"low_rank", "ttm", "any"}
    assert len(sizes["24x24"]["sampled"]) == 8
    assert main(search_shapes(checkpoint)) == 0, "done already: nothing is searched again"
    captured = capsys.readouterr()
    assert "Searching" not in captured.err
    assert "selected settings" in captured.out


def test_report_shapes_draws(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = printed(search_shapes(checkpoint), capsys)["sizes"]
    drawn = checkpoint.parent / "drawn"
    command = ["report", str(checkpoint.parent / "table.parquet"), "--output", str(drawn)]
    assert main(command) == 0
    pictures = {f"figure-{number}-{size}.png" for number in (2, 7) for size in sizes}
    assert {file.name for file in drawn.iterdir()} == {"shapes.html", *pictures}
    assert main(command) == 2
    assert "is not empty; pass overwrite" in capsys.readouterr().err


def test_report_draws_the_figures_asked_for(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(search_shapes(checkpoint)) == 0
    drawn = checkpoint.parent / "drawn"
    assert main(["report", str(checkpoint.parent / "table.parquet"), "--figures", "2", "--output", str(drawn)]) == 0
    assert {file.name for file in drawn.iterdir()} == {f"figure-2-{size}.png" for size in ("24x24", "24x48", "48x24")}


def test_report_of_a_dense_model(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = checkpoint.parent / "drawn"
    matrices = printed(["report", checkpoint, "--output", drawn], capsys)["matrices"]
    assert len(matrices) == 12 and {own["size"] for own in matrices.values()} == {"24x24", "24x48", "48x24"}
    assert all(own["errors"]["0.05"] > own["errors"]["0.5"] for own in matrices.values())
    assert [file.name for file in drawn.iterdir()] == ["figure-2c.png"]
    named = checkpoint.rename(checkpoint.with_name("a.json"))
    assert printed(["report", named], capsys)["matrices"] == matrices, "a folder is a model, whatever its name"


def test_report_of_a_setting_and_of_a_matrix_of_a_model(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = checkpoint.parent / "drawn"
    paper = printed(["report", "cp", "12x64:768", "280", "--output", drawn], capsys)
    assert (paper["tokens"], paper["orders"]["optimal"]["macs"]) == (128, 55_265_280)
    assert [file.name for file in drawn.iterdir()] == ["figure-6.png"]
    out, report = compress(checkpoint, capsys)
    tensor = report["tensors"][0]
    own = printed(["report", out, "--tensor", tensor["name"]], capsys)
    assert (own["setting"], own["tokens"]) == (tensor["setting"], report["tokens"])
    assert printed(["report", out, "--tensor", tensor["name"], "--tokens", "7"], capsys)["tokens"] == 7
    assert main(["report", str(out), "--tensor", "nowhere"]) == 2
    assert f"got 'nowhere'; there are {tensor['name']} and 11 more" in capsys.readouterr().err


def test_compress_with_a_table(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    knee = printed(search_shapes(checkpoint), capsys)["sizes"]["24x24"]["selected"]["ttm"]
    table, out = (str(checkpoint.parent / name) for name in ("table.parquet", "out"))
    options = ["--decomposition", "ttm", "--sequence-length", "32", "--rank-search", "pareto", "--cost-table", table]
    tensors = printed(["compress", checkpoint, *options, "--output", out], capsys)["tensors"]
    ranks = {tuple(tensor["setting"]["rank"]) for tensor in tensors if tensor["name"].endswith("query")}
    assert ranks == {tuple(knee["rank"])}
    assert main(["search", "shapes", out, "--output", table]) == 2
    assert "compressed by heat_hf already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "shapes", "{model}", "--output", "t", "--formats", "svd"], "unknown decomposition 'svd'"),
        (
            ["search", "shapes", "{model}", "--output", "t", "--layers", "some"],
            "argument --layers: must be a whole number from 1",
        ),
        (
            ["search", "shapes", "{model}", "--output", "t", "--workers", "0"],
            "argument --workers: must be a whole number from 1",
        ),
        (["search", "shapes", "{model}", "--output", "t", "--orders", "12"], "cannot be folded to order 12"),
        (["search", "shapes", "{model}", "--output", "t", "--accelerator", "tpu"], "tpu"),
        (["report", "a", "b"], "name one model or file, or a setting as FORMAT SHAPE RANK, got 'a b'"),
        (["report", "nowhere.parquet"], "no cost table nowhere.parquet"),
        (["report", "{model}/config.json"], "is damaged or no rank record"),
        (["report", "{model}/..", "--output", "t"], "has no heat_report.json"),
        (["report", "{model}", "--tensor", "x", "--output", "t"], "--tensor is of no use for a dense model"),
        (["report", "{model}", "--figures", "2c"], "--figures 2c needs --output DIR to draw to"),
        (["report", "{model}", "--figures", "2c", "7", "--output", "t"], "it needs a cost table: heat-hf search shapes"),
        (["report", "cp", "4x6", "2"], "SHAPE must be OUT:IN with an x between modes"),
        (["report", "cp", "4x0:6", "2"], "SHAPE must be OUT:IN with an x between modes"),
        (["report", "cp", "4:6", "0"], "rank"),
        (["report", "cp", "4:6", "2", "--beside", "a", "--output", "t"], "--beside is of no use for a setting"),
        (
            ["compress", "{model}", "--rank-search", "pareto", "--cost-table", "no.parquet", "--dry-run"],
            "no cost table no.parq",
        ),
        (["compress", "{model}", "--rank-search", "best", "--dry-run"], "rank_search must be one of uniform, pareto"),
    ],
)
def test_bad_input_to_the_search(
    arguments: list[str], message: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(file.name for file in tmp_path.iterdir())
    assert main([argument.format(model=checkpoint) for argument in arguments]) == 2
    assert message in capsys.readouterr().err
    assert sorted(file.name for file in tmp_path.iterdir()) == before


def test_report_asks_nobody_whether_a_checkpoints_code_may_run(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    config["auto_map"] = {"AutoModelForSequenceClassification": "code.Own", "AutoConfig": "code.Config"}
    (checkpoint / "config.json").write_text(json.dumps({**config, "model_type": "their-own"}))
    (checkpoint / "code.py").write_text("raise SystemExit('it ran')")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked"))
    assert main(["report", str(checkpoint)]) == 2
    told = capsys.readouterr()
    assert not told.out and told.err.startswith("heat-hf: ")
