"""Costs of models, the `cost` verb, and what it draws and writes."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest
import transformers
import yaml
from conftest import FAMILIES, small_model

from heat_hf import HeatCompressor, HeatConfig
from heat_hf.cli import main
from heat_hf.encoders.around import EXTRAS
from heat_hf.encoders.cost import model_cost
from heat_hf.encoders.linears import runs
from heat_hf.formats.size import MatrixSize
from heat_hf.hardware import load_accelerator
from heat_hf.hardware.analytic import AnalyticModel, cost_accelerator, cost_model
from heat_hf.hardware.gemm import Gemm
from heat_hf.hardware.mapper import Mapper

SIMBA = load_accelerator("simba-l")
MAPPER = Mapper(SIMBA)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Configurations without weights of the paper's models, and a small model, dense and compressed."""
    root = tmp_path_factory.mktemp("models")
    transformers.BertConfig().save_pretrained(root / "bert")
    transformers.DistilBertConfig().save_pretrained(root / "distilbert")
    small_model("bert").save_pretrained(root / "dense")
    HeatCompressor.from_pretrained(root / "dense").compress(HeatConfig(rank=4), save_directory=root / "compressed")
    return {path.name: path for path in root.iterdir()}


def cost_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    assert main(["cost", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("name", "tokens", "stated"),
    [("bert", 384, 34.31), ("bert", 128, 5.21), ("distilbert", 384, 8.58), ("distilbert", 128, 1.30)],
)
@pytest.mark.parametrize("constraints", [(), ("--constraints", "timeloop")])
def test_the_papers_dense_models(
    folders: dict, capsys: pytest.CaptureFixture[str], name: str, tokens: int, stated: float, constraints: tuple
) -> None:
    """Tables 1 to 3, EDP in µJ·s."""
    data = cost_json(capsys, folders[name], "--sequence-length", tokens, *constraints)
    assert data["edp_J_s"] * 1e6 == pytest.approx(stated, rel=0.01)
    assert data["not_counted"] == list(EXTRAS)
    assert sum(layer["repeats"] * layer["energy_pJ"] for layer in data["layers"]) == pytest.approx(data["energy_pJ"])
    assert len(data["layers"]) == (72 if name == "bert" else 36)


def test_gemm_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    data = cost_json(capsys, "--gemm", "384x768x768", "--constraints", "timeloop")
    assert data["energy_pJ"] == pytest.approx(52062584.83, rel=1e-6)
    assert data["cycles"] == 55296
    assert data["seconds"] == pytest.approx(55296 / 1.68e9)
    assert data["edp_J_s"] == pytest.approx(1.7136e-9, rel=1e-4)
    assert data["utilization"] == 1
    assert data["accesses"]["GlobalBuffer"]["inputs"] == {"reads": 589824, "fills": 294912, "updates": 0}
    assert data["mapping"][0]["loops"][0] == {"level": "GlobalBuffer", "dimension": "N", "extent": 2, "spatial": None}
    assert (data["accelerator"], data["digest"], data["constraints"]) == ("simba-l", SIMBA.digest, "timeloop")
    assert "nferred" in data["technology"]


@pytest.mark.parametrize("gemm", ["384x90x768", "128x129x384", "100x100x100"])
def test_padding_is_what_a_cost_means(gemm: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The command's figure is that of searches, reports and cards; the other is asked for."""
    data, unpadded = cost_json(capsys, "--gemm", gemm), cost_json(capsys, "--gemm", gemm, "--unpadded")
    assert data["edp_J_s"] == cost_model("simba-l").gemm(Gemm(*map(int, gemm.split("x")))).edp
    assert data["edp_J_s"] < 0.99 * unpadded["edp_J_s"]


def test_a_matrix_dense_and_factorized(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--matrix", "768x3072", "--sequence-length", 384)
    dense = cost_json(capsys, *options)
    found = cost_json(capsys, *options, "--format", "cp", "--shape", "768:48x64", "--rank", 96)
    assert dense["edp_J_s"] == AnalyticModel(MAPPER).cascade_of(MatrixSize(768, 3072), 384).edp
    assert found["dense"]["edp_J_s"] == dense["edp_J_s"]
    assert found["edp_J_s"] < dense["edp_J_s"]
    unfused = cost_json(capsys, *options, "--format", "cp", "--shape", "768:48x64", "--rank", 96, "--unfused")
    assert unfused["edp_J_s"] > found["edp_J_s"]
    assert main(["cost", *map(str, options), "--format", "tucker", "--rank", "64,32,32", "--shape", "768:48x64"]) == 0
    text = capsys.readouterr().out
    for piece in ("by step", "energy by level", "GlobalBuffer", "EDP of dense: 0.", "for M in [0:", SIMBA.digest):
        assert piece in text


def test_a_compressed_checkpoint(folders: dict, capsys: pytest.CaptureFixture[str]) -> None:
    data = cost_json(capsys, folders["compressed"], "--sequence-length", 16)
    assert {layer["what"] for layer in data["layers"]} == {"low_rank"}
    assert data["dense"]["edp_J_s"] == pytest.approx(cost_json(capsys, folders["dense"], "--sequence-length", 16)["edp_J_s"])
    report = json.loads((folders["compressed"] / "heat_report.json").read_text())
    assert report["accelerator_digest"] == SIMBA.digest
    same = cost_json(capsys, folders["compressed"], "--sequence-length", 128)
    assert report["total"]["hardware"]["edp_J_s"] == pytest.approx(same["edp_J_s"])
    assert report["total"]["hardware"]["dense_edp_J_s"] == pytest.approx(same["dense"]["edp_J_s"])
    assert main(["cost", str(folders["compressed"])]) == 0
    assert "EDP gain: " in capsys.readouterr().out
    # A model object, with the head's linears left out, says the same.
    import heat_hf  # noqa: F401

    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(folders["compressed"])
    assert model_cost(loaded, cost_accelerator("simba-l"), 16).total.edp == pytest.approx(data["edp_J_s"])


def test_what_is_left_out_can_be_counted(folders: dict, capsys: pytest.CaptureFixture[str]) -> None:
    plain = cost_json(capsys, folders["dense"], "--sequence-length", 16)
    counted = cost_json(capsys, folders["dense"], "--sequence-length", 16, "--count", *EXTRAS)
    assert counted["not_counted"] == []
    assert counted["energy_pJ"] > plain["energy_pJ"]
    extra = {layer["layer"]: layer for layer in counted["layers"] if layer["what"] in EXTRAS}
    assert extra["scores Q·Kᵀ"]["size"] == "4×16x16x6"
    assert extra["scores Q·Kᵀ"]["repeats"] == 2
    assert extra["layer norm"]["repeats"] == 4 and extra["layer norm of embeddings"]["repeats"] == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str) -> None:
    """ALBERT's one group of layers runs once for each block."""
    model = small_model(family)
    cost = model_cost(model, AnalyticModel(MAPPER), 8, count=EXTRAS)
    linears = [layer for layer in cost.layers if layer.what == "dense"]
    assert len(linears) == FAMILIES[family][1]
    assert {layer.repeats for layer in linears} == ({2} if family == "albert" else {1})
    assert all(runs(model.config, layer.name) == layer.repeats for layer in linears)


def test_the_cache_gives_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--gemm", "96x90x64", "--cache", tmp_path)
    assert cost_json(capsys, *options) == cost_json(capsys, *options)
    assert [file.suffix for file in tmp_path.iterdir()] == [".sqlite"]


def test_the_plot(tmp_path: Path, folders: dict, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cost.png"
    assert main(["cost", str(folders["dense"]), "--plot", str(file)]) == 0
    assert file.read_bytes()[:4] == b"\x89PNG"
    assert file.stat().st_size > 10_000
    assert main(["cost", "--gemm", "8x8x8", "--plot", str(tmp_path / "cost.docx")]) == 2
    assert "docx" in capsys.readouterr().err


@pytest.mark.parametrize("tool", ["timeloop", "accelforge"])
def test_export(tmp_path: Path, tool: str, capsys: pytest.CaptureFixture[str]) -> None:
    single, several = tmp_path / "one", tmp_path / "two"
    assert main(["cost", "--gemm", "384x64x768", "--export", tool, "--output", str(single)]) == 0
    assert len(list(single.glob("*.yaml"))) >= 3
    matrix = ["--matrix", "768x768", "--format", "low_rank", "--rank", "96", "--unfused"]
    assert main(["cost", *matrix, "--export", tool, "--output", str(several)]) == 0
    assert sorted(folder.name for folder in several.iterdir()) == ["step-1", "step-2"]
    assert main(["cost", "--gemm", "8x8x8", "--export", tool, "--output", str(single)]) == 2
    assert "not empty" in capsys.readouterr().err


def test_an_accelerator_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = yaml.safe_load((files("heat_hf.hardware") / "accelerators" / "edge_npu.yaml").read_text())
    own["name"], own["mac_pJ"] = "mine", 3.5
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(own, sort_keys=False))
    data = cost_json(capsys, "--gemm", "64x64x64", "--accelerator", file)
    theirs = cost_json(capsys, "--gemm", "64x64x64", "--accelerator", "edge-npu")
    assert data["accelerator"] == "mine"
    assert data["energy_pJ"] - theirs["energy_pJ"] == pytest.approx(64**3 * (3.5 - 0.35))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name one of MODEL, --gemm and --matrix, got none"),
        (["model", "--gemm", "1x2x3"], "got model and gemm"),
        (["--gemm", "384x768"], "--gemm must be MxNxK, integers with x between, from 1 to 16777216, got '384x768'"),
        (["--gemm", "384x0x768"], "--gemm must be MxNxK, integers with x between, from 1 to"),
        (["--matrix", "768"], "--matrix must be OUTxIN"),
        (["--matrix", "8x8", "--format", "cp"], "needs --format and --rank"),
        (["--matrix", "8x8", "--rank", "2"], "needs --format and --rank"),
        (["--matrix", "8x8", "--format", "cp", "--rank", "two"], "--rank must be an integer"),
        (["--matrix", "8x8", "--format", "svd", "--rank", "2"], "svd"),
        (["--gemm", "8x8x8", "--format", "cp"], "--format needs --matrix"),
        (
            ["--gemm", "8x8x8", "--accelerator", "tpu"],
            "no accelerator 'tpu'; shipped are edge-npu, simba, simba-l, systolic-os",
        ),
        (["--gemm", "8x8x8", "--constraints", "mine"], "constraints must name one of simba-l's (timeloop), got 'mine'"),
        (["--gemm", "8x8x8", "--objective", "area"], "objective must be one of edp, energy, latency, got 'area'"),
        (["--gemm", "8x8x8", "--count", "attention"], "--count needs a MODEL"),
        (["--gemm", "8x8x8", "--export", "zigzag"], "--export must be one of timeloop, accelforge"),
        (["--gemm", "8x8x8", "--export", "timeloop"], "--export needs --gemm or --matrix, and --output"),
        (["--matrix", "8x8", "--sequence-length", "0"], "argument --sequence-length: must be a whole number from 1"),
        (["nowhere/at/all"], "nowhere/at/all"),
    ],
)
def test_bad_input(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(["cost", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_bad_counts(folders: dict, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", str(folders["dense"]), "--count", "pooler"]) == 2
    assert "count must name some of attention, embeddings, elementwise, got pooler" in capsys.readouterr().err
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        model_cost(str(folders["dense"]), AnalyticModel(MAPPER), 8, 0)


def test_a_quantized_or_unknown_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = transformers.BertConfig(hidden_size=24, num_attention_heads=4, intermediate_size=48, num_hidden_layers=1)
    config.quantization_config = {"quant_method": "gptq", "bits": 4}
    config.save_pretrained(tmp_path / "gptq")
    assert main(["cost", str(tmp_path / "gptq")]) == 2
    assert "is quantized with gptq" in capsys.readouterr().err
    transformers.GPT2Config(n_embd=24, n_head=2, n_layer=1).save_pretrained(tmp_path / "gpt2")
    assert main(["cost", str(tmp_path / "gpt2")]) == 2
    assert "unknown model family 'gpt2'" in capsys.readouterr().err
