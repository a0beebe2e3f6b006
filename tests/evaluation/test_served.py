"""The score that `evaluate` prints is the one of sentence-transformers' own evaluator, whatever modules a checkpoint has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import FAMILIES, small_model

from heat_hf import HeatCompressor, HeatConfig, evaluate_task
from heat_hf.cli import main
from heat_hf.distillation import DistillationArguments, DistillationTrainer
from heat_hf.encoders.batches import encode_rows
from heat_hf.encoders.checkpoints.sentence_encoder import SentenceEncoder
from heat_hf.encoders.served import Served
from heat_hf.encoders.signals import output_signals
from heat_hf.evaluation.tasks.sentence_similarity import sentence_embeddings
from heat_hf.integrations.exported import load_exported
from heat_hf.integrations.onnx import OnnxModel, export_onnx

st = pytest.importorskip(
    "sentence_transformers", reason="sentence-transformers is not installed: scores are not compared with its"
)
from sentence_transformers.sentence_transformer import modules as own  # noqa: E402
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator  # noqa: E402

WORDS = [f"w{number}" for number in range(44)] + ["query", ":"]


def sentences(seed: int, count: int = 24) -> list[str]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda most: int(torch.randint(1, most, (1,), generator=generator))  # noqa: E731
    return [
        " ".join(WORDS[draw(44)].upper() if draw(9) == 1 else WORDS[draw(44)] for _ in range(draw(14))) for _ in range(count)
    ]


ROWS = {
    "sentence1": sentences(1),
    "sentence2": sentences(2),
    "score": torch.rand(24, generator=torch.Generator().manual_seed(3)).tolist(),
}


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", *WORDS]
    raw = Tokenizer(models.WordLevel({word: number for number, word in enumerate(vocabulary)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    special = {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, model_max_length=64, model_input_names=["input_ids", "attention_mask"], **special
    )


def saved_tokenizer(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


def checkpoint(place: Path, family: str, modules: list[Any], prompt: str = "", longest: int = 9, **options: Any) -> Path:
    """A random model of a family as a checkpoint of sentence-transformers."""
    torch.manual_seed(5)
    model = small_model(family, head=False)
    with torch.no_grad():  # larger than trained ones begin, so that sentences differ
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)
    model.save_pretrained(place / "plain")
    tokenizer().save_pretrained(place / "plain")
    first = own.Transformer(str(place / "plain"), max_seq_length=longest, do_lower_case=options.pop("lower", False))
    named = {"prompts": {"query": prompt}, "default_prompt_name": "query"} if prompt else {}
    st.SentenceTransformer(modules=[first, *modules], device="cpu", **named, **options).save_pretrained(str(place / "st"))
    return place / "st"


def theirs(model: Any) -> float:
    evaluator = EmbeddingSimilarityEvaluator(ROWS["sentence1"], ROWS["sentence2"], ROWS["score"], write_csv=False)
    return float(evaluator(model)[evaluator.primary_metric])


def printed(folder: Path, capsys: Any) -> float:
    data = folder.parent / "pairs.jsonl"
    rows = [dict(zip(ROWS, row, strict=True)) for row in zip(*ROWS.values(), strict=True)]
    data.write_text("\n".join(map(json.dumps, rows)))
    capsys.readouterr()
    assert main(["evaluate", str(folder), "--task", "sentence-similarity", "--data", str(data), "--json"]) == 0
    return float(json.loads(capsys.readouterr().out)[str(folder)]["spearman"])


def agree(folder: Path, capsys: Any, device: str = "cpu") -> None:
    assert printed(folder, capsys) == pytest.approx(theirs(st.SentenceTransformer(str(folder), device=device)), abs=1e-6)


class Runtime(torch.nn.Module):
    """An exported model behind sentence-transformers' modules, as its ONNX and OpenVINO back-ends have it."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.exported = load_exported(folder)
        self.config = self.exported.config

    def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any = None, return_dict: bool = True) -> Any:
        return self.exported(input_ids, attention_mask, token_type_ids)


def agree_exported(folder: Path, dense: Path, capsys: Any) -> None:
    model = st.SentenceTransformer(str(dense), device="cpu")
    model[0].model = Runtime(folder)
    assert printed(folder, capsys) == pytest.approx(theirs(model), abs=1e-6)


CASES: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "mean": ([own.Pooling(24, "mean"), own.Normalize()], {}),
    "cls": ([own.Pooling(24, "cls"), own.Normalize()], {}),
    "max": ([own.Pooling(24, "max")], {}),
    "lasttoken": ([own.Pooling(24, "lasttoken")], {"lower": True}),
    "weightedmean": ([own.Pooling(24, "weightedmean")], {"similarity_fn_name": "euclidean"}),
    "root of the length": ([own.Pooling(24, "mean_sqrt_len_tokens")], {"similarity_fn_name": "dot"}),
    "two beside each other": ([own.Pooling(24, ("cls", "max"))], {"similarity_fn_name": "manhattan"}),
    "dense": ([own.Pooling(24, "mean"), own.Dense(24, 10), own.Normalize()], {"similarity_fn_name": "dot"}),
    "residual and norm": ([own.Pooling(24, "mean"), own.Dense(24, 9, use_residual=True), own.LayerNorm(9), own.Dropout()], {}),
    "prompt": ([own.Pooling(24, "cls")], {"prompt": "query : "}),
    "prompt not pooled": ([own.Pooling(24, "mean", include_prompt=False)], {"prompt": "query : ", "longest": 12}),
    "cut vectors": ([own.Pooling(24, "mean")], {"truncate_dim": 7}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_module(case: str, tmp_path: Path, capsys: Any) -> None:
    modules, options = CASES[case]
    folder = checkpoint(tmp_path, "bert", modules, **options)
    agree(folder, capsys)
    HeatCompressor.from_pretrained(folder).compress(HeatConfig(rank=6, accelerator=None), ROWS["sentence1"], tmp_path / "heat")
    agree(tmp_path / "heat", capsys)
    vectors = st.SentenceTransformer(str(folder), device="cpu").encode(ROWS["sentence1"])
    model = transformers.AutoModel.from_pretrained(folder)
    torch.testing.assert_close(
        sentence_embeddings(model, saved_tokenizer(folder), ROWS["sentence1"]), torch.from_numpy(vectors), atol=1e-5, rtol=1e-5
    )


DIAGONAL = set(zip(FAMILIES, list(CASES)[1:], strict=False))
CROSS = [
    pytest.param(family, case, marks=() if (family, case) in DIAGONAL else pytest.mark.slow)
    for family in FAMILIES
    for case in CASES
]


@pytest.mark.parametrize(("family", "case"), CROSS)
def test_every_family_before_after_distilled_exported_int8(family: str, case: str, tmp_path: Path, capsys: Any) -> None:
    modules, options = CASES[case]
    folder = checkpoint(tmp_path, family, modules, **options)
    agree(folder, capsys)
    HeatCompressor.from_pretrained(folder).compress(HeatConfig(rank=6, accelerator=None), ROWS["sentence1"], tmp_path / "heat")
    agree(tmp_path / "heat", capsys)
    student, teacher = (transformers.AutoModel.from_pretrained(place) for place in (tmp_path / "heat", folder))
    arguments = DistillationArguments(
        output_dir=str(tmp_path / "run"), max_steps=2, report_to="none", recipe="logits", use_cpu=True
    )
    words = saved_tokenizer(folder)
    rows, collator = encode_rows(ROWS["sentence1"], words), transformers.DataCollatorWithPadding(words)
    trainer = DistillationTrainer(student, teacher, arguments, rows, collator, processing_class=words)
    trainer.train()
    trainer.save(tmp_path / "distilled")
    agree(tmp_path / "distilled", capsys)
    for int8 in (False, True):
        target = tmp_path / f"onnx{int8}"
        assert main(["export", str(tmp_path / "distilled"), "--output", str(target), *(["--int8"] if int8 else [])]) == 0
        agree_exported(target, folder, capsys)


@pytest.mark.parametrize("case", [pytest.param(case, marks=() if case == "cls" else pytest.mark.slow) for case in CASES])
def test_openvino_and_int8(case: str, tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("nncf", reason="nncf is not installed: pip install 'heat-hf[openvino]'")
    modules, options = CASES[case]
    folder = checkpoint(tmp_path, "bert", modules, **options)
    HeatCompressor.from_pretrained(folder).compress(HeatConfig(rank=6, accelerator=None), ROWS["sentence1"], tmp_path / "heat")
    (tmp_path / "rows.txt").write_text("\n".join(filter(None, ROWS["sentence1"])))
    for int8 in ([], ["--int8", "--calibration-file", str(tmp_path / "rows.txt")]):
        target = tmp_path / f"openvino{len(int8)}"
        assert main(["export", str(tmp_path / "heat"), "--runtime", "openvino", "--output", str(target), *int8]) == 0
        agree_exported(target, folder, capsys)


def test_the_fisher_is_that_of_the_served_embedding(tmp_path: Path) -> None:
    modules, options = CASES["dense"]
    model = transformers.AutoModel.from_pretrained(checkpoint(tmp_path, "bert", modules, **options))
    inputs = dict(tokenizer()(ROWS["sentence1"][:4], padding=True, return_tensors="pt"))
    (signal,) = output_signals(model(**inputs), inputs, model)
    assert signal.values.shape == (4, 10)
    signal.values.sum().backward()
    assert model.get_input_embeddings().weight.grad.abs().sum() > 0
    assert not any(name.startswith("_served") for name in model.state_dict())


DENSE = {"in_features": 3, "out_features": 2}


@pytest.mark.parametrize(
    ("kind", "file", "content", "message"),
    [
        ("mine.Pool", "1/config.json", {}, "module 'mine.Pool' that heat_hf does not know"),
        ("sentence_transformers.models.CNN", "1/config.json", {}, "CNN' that heat_hf does not know; known are Pooling, Dense"),
        ("Pooling", "1/config.json", {"pooling_mode": "median"}, "unknown pooling mode 'median'"),
        ("Dense", "1/config.json", {"in_features": 3}, "1/config.json is damaged: .*'out_features'"),
        ("Dense", "1/config.json", DENSE, "has no 1/model.safetensors"),
        ("Dense", "1/config.json", {**DENSE, "activation_function": "os.system"}, "a module of torch.nn, got 'os.system'"),
        ("Normalize", "config_sentence_transformers.json", {"default_prompt_name": "x"}, "default_prompt_name must be one of"),
        ("Normalize", "sentence_bert_config.json", {"module_output_name": "scores"}, "must take last_hidden_state of forward"),
    ],
)
def test_what_is_not_known_is_refused_by_name(kind: str, file: str, content: dict[str, Any], message: str) -> None:
    first = {"type": "sentence_transformers.models.Transformer", "path": ""}
    kind = kind if "." in kind else f"sentence_transformers.models.{kind}"
    files = {"modules.json": [first, {"type": kind, "path": "1"}], file: content}
    with pytest.raises(ValueError, match=message):
        Served(SentenceEncoder(files={name: json.dumps(value).encode() for name, value in files.items()}))


def test_older_checkpoints_say_length_and_case_in_a_file_of_their_own(tmp_path: Path, capsys: Any) -> None:
    folder = checkpoint(tmp_path, "bert", CASES["max"][0], longest=64)
    settings = folder / "sentence_bert_config.json"
    settings.write_text(json.dumps({"max_seq_length": 5, "do_lower_case": True}))
    flags = {"word_embedding_dimension": 24, "pooling_mode_cls_token": True, "pooling_mode_lasttoken": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(flags))
    agree(folder, capsys)
    settings.write_text(json.dumps({"max_seq_length": 12, "do_lower_case": False}))
    agree(folder, capsys)


def test_a_checkpoint_without_modules_is_averaged(tmp_path: Path, capsys: Any, caplog: Any) -> None:
    checkpoint(tmp_path, "bert", CASES["cls"][0])
    agree(tmp_path / "plain", capsys)
    assert "has no modules.json: embeddings are the means of tokens" in caplog.text


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_exported_in_sentence_transformers_layout(dtype: torch.dtype, tmp_path: Path, capsys: Any) -> None:
    folder = checkpoint(tmp_path, "bert", CASES["cls"][0])
    model = transformers.AutoModel.from_pretrained(folder, dtype=dtype)
    assert export_onnx(model, saved_tokenizer(folder), tmp_path / "onnx") == tmp_path / "onnx" / OnnxModel.file
    files = {str(path.relative_to(tmp_path / "onnx")) for path in (tmp_path / "onnx").rglob("*") if path.is_file()}
    assert {"modules.json", "1_Pooling/config.json", "sentence_bert_config.json", "config.json", "onnx/model.onnx"} <= files
    vectors = sentence_embeddings(OnnxModel(tmp_path / "onnx"), saved_tokenizer(folder), ROWS["sentence1"])
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(24))
    wanted = torch.from_numpy(st.SentenceTransformer(str(folder), device="cpu").encode(ROWS["sentence1"]))
    assert float((vectors * wanted).sum(1).min()) > (0.9999 if dtype == torch.float16 else 0.99)
    assert model.dtype == dtype
    own_score = evaluate_task(OnnxModel(tmp_path / "onnx"), saved_tokenizer(folder), "sentence-similarity", ROWS)["spearman"]
    assert printed(tmp_path / "onnx", capsys) == pytest.approx(own_score, abs=1e-6)
