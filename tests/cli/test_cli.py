"""The command line: exit codes, JSON, dry runs, bad input, and `optimum-cli heat` on the same code."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from conftest import small_model

from heat_hf.cli import VERBS, build_parser, main

SENTENCES = ["A man is playing a guitar.", "Two dogs run on the beach.", "She is slicing an onion.", "The market fell today."]


@pytest.fixture
def checkpoint(tmp_path: Path, minilm: str) -> Path:
    """A small random BERT with the real tokenizer, and data files beside it."""
    torch_model = small_model("bert", head=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    torch_model.resize_token_embeddings(len(tokenizer))
    torch_model.save_pretrained(tmp_path / "dense")
    tokenizer.save_pretrained(tmp_path / "dense")
    (tmp_path / "sentences.txt").write_text("\n".join([*SENTENCES, "", "  "]) + "\n")
    (tmp_path / "labels.csv").write_text(
        "sentence,label\n" + "\n".join(f"{s.rstrip('.')},{i % 2}" for i, s in enumerate(SENTENCES))
    )
    pairs = [f"{a}\t{b}\t{i}" for i, (a, b) in enumerate(itertools.pairwise(SENTENCES))]
    (tmp_path / "pairs.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *pairs]))
    return tmp_path / "dense"


def test_compress_evaluate_report(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = checkpoint.parent / "out"
    arguments = [
        "--decomposition",
        "ttm",
        "--target-params-ratio",
        "0.6",
        "--calibration-file",
        str(checkpoint.parent / "sentences.txt"),
    ]
    assert main(["compress", str(checkpoint), *arguments, "--output", str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["total"]["params_ratio"] <= 0.6
    assert report["calibration_rows"] == 4
    assert main(["report", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == report
    assert main(["report", str(out)]) == 0
    assert "bert.encoder.layer.0.attention.self.query" in capsys.readouterr().out

    data = str(checkpoint.parent / "labels.csv")
    command = ["evaluate", str(out), "--task", "text-classification", "--data", data, "--baseline", str(checkpoint)]
    assert main([*command, "--json", "--latency"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert set(scores) == {str(out), str(checkpoint)}
    assert 0 <= scores[str(out)]["accuracy"] <= 1
    assert scores[str(out)]["rows"] == 4
    assert scores[str(out)]["parameters"] == report["total"]["compressed_model_parameters"]
    assert scores[str(out)]["latency_s"]["lower"] <= scores[str(out)]["latency_s"]["median"]
    assert main([*command, "--rows", "2"]) == 0
    assert "accuracy" in capsys.readouterr().out
    similarity = [
        "evaluate",
        str(out),
        "--task",
        "sentence-similarity",
        "--data",
        str(checkpoint.parent / "pairs.tsv"),
        "--json",
    ]
    assert main(similarity) == 0
    assert -1 <= json.loads(capsys.readouterr().out)[str(out)]["spearman"] <= 1


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

    monkeypatch.setattr("heat_hf.formats.base.Format.decompose", refuse)
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
        (["report", "{model}"], "has no heat_report.json"),
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
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
    capsys.readouterr()


def test_help_says_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    for verb, known in VERBS.items():
        assert known.help in build_parser().format_help()
        with pytest.raises(SystemExit) as stop:
            main([verb, "--help"])
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


def test_search_report_and_compress_with_the_table(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, drawn, out = (str(checkpoint.parent / name) for name in ("table.parquet", "drawn", "out"))
    space = ["--formats", "low_rank", "ttm", "--orders", "2", "3", "--top-k", "1", "--budgets", "2", "--layers", "all"]
    command = ["search", "shapes", str(checkpoint), *space, "--sequence-length", "32", "--workers", "1", "--output", table]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["sizes"]) == {"24x24", "48x24", "24x48"}
    assert set(found["sizes"]["24x24"]["selected"]) == {"low_rank", "ttm", "any"}
    assert len(found["sizes"]["24x24"]["sampled"]) == 8
    assert main(command) == 0, "done already: nothing is searched again"
    captured = capsys.readouterr()
    assert "Searching" not in captured.err
    assert "selected settings" in captured.out

    assert main(["report", "shapes", table, "--output", drawn]) == 0
    pictures = {f"figure-{number}-{size}.png" for number in (2, 7) for size in found["sizes"]}
    assert {file.name for file in Path(drawn).iterdir()} == {"shapes.html", *pictures}
    assert main(["report", "shapes", table, "--output", drawn]) == 2
    assert "is not empty; pass overwrite" in capsys.readouterr().err

    options = ["--decomposition", "ttm", "--sequence-length", "32", "--rank-search", "pareto", "--cost-table", table]
    assert main(["compress", str(checkpoint), *options, "--output", out, "--json"]) == 0
    tensors = json.loads(capsys.readouterr().out)["tensors"]
    knee = found["sizes"]["24x24"]["selected"]["ttm"]
    (own,) = {tuple(t["setting"]["rank"]) for t in tensors if t["name"].endswith("query")}
    assert list(own) == knee["rank"]
    assert main(["search", "shapes", out, "--output", table]) == 2
    assert "compressed by heat_hf already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "shapes", "{model}", "--output", "t", "--formats", "svd"], "unknown decomposition 'svd'"),
        (["search", "shapes", "{model}", "--output", "t", "--layers", "some"], "--layers must be a positive integer or all"),
        (["search", "shapes", "{model}", "--output", "t", "--workers", "0"], "--workers must be at least 1, got 0"),
        (["search", "shapes", "{model}", "--output", "t", "--orders", "12"], "cannot be folded to order 12"),
        (["search", "shapes", "{model}", "--output", "t", "--accelerator", "tpu"], "tpu"),
        (["report", "shapes"], "name a MODEL, or: shapes TABLE"),
        (["report", "a", "b"], "name a MODEL, or: shapes TABLE, or: ranks RECORD, got 'a b'"),
        (["report", "{model}", "--output", "t"], "has no heat_report.json"),
        (["report", "shapes", "nowhere.parquet"], "no cost table nowhere.parquet"),
        (["report", "shapes", "{model}/config.json"], "not a readable Parquet file"),
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


def test_distill_trains_saves_and_goes_on(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = checkpoint.parent
    student, out = here / "student", here / "distilled"
    assert main(["compress", str(checkpoint), "--target-params-ratio", "0.6", "--output", str(student)]) == 0
    command = ["distill", str(student), "--teacher", str(checkpoint), "--train-file", str(here / "labels.csv")]
    steps = ["--batch-size", "2", "--max-steps", "4", "--save-steps", "3"]
    assert main([*command, *steps, "--output", str(out)]) == 0
    loaded, before = (transformers.AutoModelForSequenceClassification.from_pretrained(own) for own in (out, student))
    pairs = zip(loaded.parameters(), before.parameters(), strict=True)
    assert any(not a.equal(b) for a, b in pairs)
    assert (out / "heat_report.json").read_text() == (student / "heat_report.json").read_text()
    assert not out.with_name("distilled.checkpoints").exists()

    assert main([*command, *steps, "--output", str(out)]) == 2
    assert "distilled" in capsys.readouterr().err
    for options, message in (
        (["--recipe", "none"], "recipe must be one of two-stage"),
        (["--max-steps", "1"], "1 steps are too few for 2 stages"),
        (["--targets", "labels", "--train-file", str(here / "sentences.txt")], "targets='labels' reads labels"),
    ):
        assert main([*command, *steps, *options, "--output", str(here / "other")]) == 2
        assert message in capsys.readouterr().err
        assert not (here / "other").exists()
    assert main(["distill", str(checkpoint), *command[2:], "--output", str(here / "other")]) == 2
    assert "has no heat_report.json" in capsys.readouterr().err
