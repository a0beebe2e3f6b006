"""Cards say what the report says, in the Hub's metadata and in words; their usage code runs."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import transformers
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml

from heat_hf import CompressionReport, HeatCompressor, HeatConfig
from heat_hf.encoders.checkpoints.folder import save_compressed
from heat_hf.reports.card import Evaluation, Origin, inherited_license, model_card, saved_files

EVIL = (
    "a | b || c", "[x](javascript:alert(1))", "<script>alert(1)</script>", "x\n---\nlicense: other", "a: b # c, - d",
    "`tick` ```", "*bold* _it_ ~~no~~ \\ back", "{{ 7 * 7 }}", "# head\n\n<b>", "quote\"s 'n' &lt;", "Übung 😀", "```\n# out",
)  # fmt: skip
SCORE = Evaluation("sentence-similarity", "STS-B", "test", 1379, "spearman", 0.81, 0.82, "sentence-transformers/stsb")


@pytest.fixture(scope="module")
def compressed(minilm: str) -> HeatCompressor:
    compressor = HeatCompressor.from_pretrained(minilm)
    compressor.compress(HeatConfig(target_params_ratio=0.4, modules=[r"layer\.0\."]))
    return compressor


def report_of(compressor: HeatCompressor) -> CompressionReport:
    assert compressor.report is not None
    return compressor.report


def test_metadata_has_both_models_figures(compressed: HeatCompressor, minilm: str) -> None:
    report = report_of(compressed)
    origin = Origin(
        "me-heat", "sentence-transformers/all-MiniLM-L6-v2", inherited_license(minilm), ["sentence-transformers/stsb"]
    )
    card = model_card(report, origin, [SCORE])
    data = yaml.safe_load(re.match(r"---\n(.*?)\n---", str(card), re.DOTALL)[1])  # type: ignore[index]
    assert (
        data["library_name"] == "heat_hf" and data["license"] == "apache-2.0" and data["pipeline_tag"] == "sentence-similarity"
    )
    assert data["base_model"] == "sentence-transformers/all-MiniLM-L6-v2" and "low_rank" in data["tags"]
    results = data["model-index"][0]["results"]
    values = {metric["name"]: metric["value"] for result in results for metric in result["metrics"]}
    cost = report.hardware
    assert cost is not None
    where = f"on simba-l, {report.tokens} tokens, µJ·s"
    assert values["spearman"] == 0.81 and values["spearman of the dense model"] == 0.82
    assert values[f"EDP {where}"] == pytest.approx(cost.now.edp * 1e6, rel=1e-5)
    assert values[f"EDP of the dense model {where}"] == pytest.approx(cost.dense.edp * 1e6, rel=1e-5)


def test_words_have_the_accelerator_every_tensor_and_how_it_was_made(compressed: HeatCompressor) -> None:
    report = report_of(compressed)
    origin = Origin("me-heat", training="Distilled.", command="make it", figures={"Losses": "training.png"})
    text = str(model_card(report, origin, [SCORE]))
    assert report.accelerator_digest in text and "Inferred: the paper's configuration is not public" in text
    for tensor in report.tensors:
        assert f"| {tensor.name} |" in text
    assert "Distilled." in text and "```sh\nmake it\n```" in text and "![Losses](training.png)" in text
    assert "| STS-B test, spearman | 0.8200 | 0.8100 | -0.0100 |" in text
    plain = str(model_card(report, Origin("me-heat")))
    assert "How it was made" not in plain and "```sh" not in plain and "model-index" not in plain


@pytest.mark.parametrize("name", EVIL)
def test_names_break_neither_metadata_nor_page(compressed: HeatCompressor, name: str) -> None:
    report = replace(report_of(compressed), base_model=name, accelerator=name)
    score = replace(SCORE, dataset=name, split=name, metric=name, dataset_type=name)
    origin = Origin(name, training="Distilled.", command=f"make {name}", figures={name: "a b.png"}, datasets=[name])
    card = ModelCard(str(model_card(report, origin, [score])))
    assert (card.data.base_model, card.data.datasets, card.data.library_name) == (name, [name], "heat_hf")
    assert card.data.eval_results[0].dataset_name == name and card.data.license == report.license
    plainest = model_card(report_of(compressed), Origin("plain"), [SCORE])
    html = MarkdownIt("commonmark").enable("table").render(card.text)
    plain = MarkdownIt("commonmark").enable("table").render(ModelCard(str(plainest)).text)
    assert f"<h1>{escapeHtml(' '.join(name.split()))}</h1>" in html
    for tag in ("<tr>", "<th", "<td", "<em>", "<a ", "<script", "<b>", "<h1>"):
        assert html.count(tag) == plain.count(tag), tag
    assert html.count("<pre>") == plain.count("<pre>") + 1  # the command
    (code,) = re.findall(r"```python\n(.*?)\n```\n", card.content, re.DOTALL)
    assert f"SentenceTransformer({json.dumps(name, ensure_ascii=False)})" in code
    compile(code, "card", "exec")


def test_a_folder_is_named_without_its_place(minilm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hidden-from-all").mkdir()
    (tmp_path / "hidden-from-all" / "encoder").symlink_to(minilm)
    for place, out in ((tmp_path / "hidden-from-all" / "encoder", "absolute"), ("hidden-from-all/encoder", "relative")):
        HeatCompressor.from_pretrained(place).compress(HeatConfig(target_params_ratio=0.4), save_directory=tmp_path / out)
        assert CompressionReport.load(tmp_path / out).base_model == "encoder"
        texts = [file.read_text() for file in (tmp_path / out).rglob("*") if file.suffix in (".json", ".md")]
        assert not any("hidden-from-all" in text or str(tmp_path) in text for text in texts)
        assert ModelCard.load(tmp_path / out / "README.md").data.license == "apache-2.0"


def test_the_usage_code_runs(compressed: HeatCompressor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = model_card(report_of(compressed), Origin("me-heat"))
    picture = tmp_path / "a.png"
    picture.write_bytes(b"png")
    folder = tmp_path / "me-heat"
    files = {**saved_files(report_of(compressed), card), "training.png": picture}
    save_compressed(compressed.model, compressed.tokenizer, folder, files)
    assert (folder / "training.png").read_bytes() == b"png"
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", ModelCard.load(folder / "README.md").content, re.DOTALL)
    found: dict = {}
    exec(compile(code, "card", "exec"), found)
    assert isinstance(found["model"], transformers.BertModel)


def test_a_checkpoint_without_a_card_has_no_license(tmp_path: Path) -> None:
    assert inherited_license(tmp_path) is None


def test_a_saved_folders_card_loads_what_it_is(minilm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sentence encoder as one, and a classifier with its head, without any scores to tell."""
    monkeypatch.chdir(tmp_path)
    classifier = transformers.AutoModelForSequenceClassification.from_pretrained(minilm)
    classifier.save_pretrained("dense-classifier")
    transformers.AutoTokenizer.from_pretrained(minilm).save_pretrained("dense-classifier")
    for name, dense, task in (
        ("encoder", minilm, "sentence-similarity"),
        ("classifier", "dense-classifier", "text-classification"),
    ):
        HeatCompressor.from_pretrained(dense).compress(HeatConfig(target_params_ratio=0.3), save_directory=name)
        card = ModelCard.load(Path(name) / "README.md")
        assert card.data.pipeline_tag == task
        (code,) = re.findall(r"```python\n(.*?)```", card.content, re.DOTALL)
        found: dict = {}
        exec(compile(code, "card", "exec"), found)
        if task == "sentence-similarity":
            assert found["model"].encode("A man is playing a guitar.").shape == (384,)
        else:
            assert found["pipe"]("A man is playing a guitar.")[0]["label"] in ("LABEL_0", "LABEL_1")
