"""Calibration: moments equal those computed by hand, padding excluded, and every form of data is understood."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from conftest import FAMILIES, small_model, token_ids
from datasets import Dataset
from safetensors.torch import save_file
from torch import nn

from heat_hf.encoders import coherence, statistics
from heat_hf.encoders.batches import calibration_batches
from heat_hf.encoders.linears import encoder_linears
from heat_hf.encoders.statistics import Statistics

BATCHES = [{"input_ids": token_ids()}]
SENTENCES = ["a short one", "a somewhat longer sentence than that", "the third"]


@pytest.fixture(scope="module")
def tokenizer(minilm: str) -> transformers.PreTrainedTokenizerBase:
    return transformers.AutoTokenizer.from_pretrained(minilm)


def collected(model: transformers.PreTrainedModel, batches: list | None = None, **options: object) -> Statistics:
    return Statistics.collect(model, encoder_linears(model), batches or BATCHES, **options)


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "modernbert", "albert"])
def test_moments_equal_those_by_hand(family: str) -> None:
    model = small_model(family)
    linears = encoder_linears(model)
    ids = token_ids(4, 8)
    mask = torch.ones_like(ids)
    mask[1, 3:] = mask[2, 6:] = 0
    batches = [{"input_ids": ids[i : i + 2], "attention_mask": mask[i : i + 2], "labels": ids[:2, 0]} for i in (0, 2)]
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in linears}
    hooks = [m.register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0])) for name, m in linears.items()]
    with torch.no_grad():
        for batch in batches:
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    for hook in hooks:
        hook.remove()
    moments = Statistics.collect(model, linears, batches, gradients=False).second_moments
    for name, inputs in seen.items():
        rows = []
        for i, x in enumerate(inputs):
            keep = batches[i * len(batches) // len(inputs)]["attention_mask"].bool()
            rows.append(x[keep] if x.shape[:2] == keep.shape else x.reshape(-1, x.shape[-1]))
        flat = torch.cat(rows).double()
        torch.testing.assert_close(moments[name], flat.T @ flat / len(flat), rtol=1e-4, atol=1e-6)


def test_layers_with_the_same_input_share_a_moment() -> None:
    model = small_model("bert")
    moments = collected(model).second_moments
    base = "bert.encoder.layer.0.attention.self."
    assert moments[f"{base}query"] is moments[f"{base}key"] is moments[f"{base}value"]
    assert len(moments.triangles) == 2 * 4


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "modernbert", "albert", "mpnet"])
def test_kept_on_a_disk_they_are_the_same(family: str) -> None:
    """Blocks run again in the backward pass then, and what they then read and answer must not count twice."""
    model = small_model(family)
    held, kept = (collected(model, disk=disk) for disk in (False, True))
    for one, other in ((held.second_moments, kept.second_moments), (held.output_moments, kept.output_moments)):
        assert list(one) == list(other)
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=1e-5, atol=0)


def test_a_pass_keeps_less_where_blocks_run_again() -> None:
    """What autograd keeps of a pass does not grow with blocks then."""

    def kept(blocks: int, disk: bool) -> int:
        sizes: list[int] = []
        settings = {**FAMILIES["bert"][0], "num_hidden_layers": blocks}
        model = transformers.BertModel(transformers.BertConfig(**settings)).eval()
        known = {p.untyped_storage().data_ptr() for p in model.parameters()}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.untyped_storage().data_ptr() not in known:
                sizes.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            collected(model, disk=disk)
        return sum(sizes)

    assert kept(4, disk=True) - kept(2, disk=True) < 0.25 * (kept(4, disk=False) - kept(2, disk=False))


def test_training_mode_gradients_and_hooks_are_restored() -> None:
    model = small_model("bert").train()
    frozen = next(model.parameters()).requires_grad_(False)
    collected(model)
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == [p is not frozen for p in model.parameters()]
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_a_layer_that_is_never_reached() -> None:
    model = small_model("bert")
    model.unused = nn.Linear(4, 4)
    with pytest.raises(ValueError, match="never reaches 'unused'"):
        Statistics.collect(model, {"unused": model.unused}, BATCHES)


class Passes:
    """Counts the forward and backward passes of a model, in rows."""

    def __init__(self, model: nn.Module) -> None:
        self.forward = self.backward = 0
        model.register_forward_hook(self._count, with_kwargs=True)

    def _count(self, _module: nn.Module, _args: tuple, given: dict, output: object) -> None:
        rows = len(given["input_ids"])
        self.forward += rows
        if output.logits.requires_grad:
            output.logits.register_hook(lambda _: self._back(rows))

    def _back(self, rows: int) -> None:
        self.backward += rows


def test_one_pass_for_both_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row runs forward once; those whose gradients are taken, backward once, and a few once more for the scale."""
    monkeypatch.setattr(statistics, "GRADIENT_ROWS", 6)
    monkeypatch.setattr(coherence, "ROWS", 3)
    model = small_model("bert")
    passes = Passes(model)
    batches = [{"input_ids": token_ids(3, length)} for length in (4, 5, 6, 7)]
    both = collected(model, batches)
    assert (passes.forward, passes.backward) == (15, 9)
    assert both.rows == 12
    plain = collected(model, batches, gradients=False)
    assert (passes.forward, passes.backward) == (27, 9)
    assert not plain.output_moments
    for name, moment in both.second_moments.items():
        assert torch.equal(moment, plain.second_moments[name])


def test_output_moments_depend_on_the_seed_and_not_on_padding() -> None:
    """With frozen parameters, too."""
    model = small_model("bert").requires_grad_(False)
    ids = token_ids(4, 8)
    mask = torch.ones_like(ids)
    mask[1, 3:] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    first, second = collected(model, [batch], seed=1), collected(model, [batch], seed=1)
    assert all(torch.equal(moment, second.output_moments[name]) for name, moment in first.output_moments.items())
    assert not torch.equal(
        *(collected(model, [batch], seed=seed).output_moments[next(iter(first.output_moments))] for seed in (1, 2))
    )
    unpadded = collected(model, [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}], seed=1)
    name = next(iter(first.output_moments))
    apart = (first.output_moments[name] - unpadded.output_moments[name]).norm()
    assert apart > 0.01 * first.output_moments[name].norm()
    assert all(float(torch.linalg.eigvalsh(moment).min()) > -1e-9 for moment in first.output_moments.values())


def test_saved_and_loaded(tmp_path: Path) -> None:
    model = small_model("bert")
    saved = collected(model)
    saved.save(tmp_path / "statistics.safetensors")
    loaded = Statistics.load(tmp_path / "statistics.safetensors")
    assert (loaded.rows, loaded.data_digest, loaded.model_digest, loaded.seed) == (3, saved.data_digest, saved.model_digest, 0)
    for name in saved.second_moments:
        assert torch.equal(saved.second_moments[name], loaded.second_moments[name])
        assert torch.equal(saved.output_moments[name], loaded.output_moments[name])
    assert len(loaded.second_moments.triangles) == 2 * 4  # shared ones still are
    assert list(loaded.second_moments) == list(saved.second_moments)
    assert [file.name for file in tmp_path.iterdir()] == ["statistics.safetensors"]


def test_statistics_of_something_else_are_refused(tmp_path: Path) -> None:
    model = small_model("bert")
    names = list(encoder_linears(model))
    plain = collected(model, gradients=False)
    plain.require(model, names, gradients=False)
    with pytest.raises(ValueError, match="have no gradients"):
        plain.require(model, names, gradients=True)
    with pytest.raises(ValueError, match="are of another model"):
        plain.require(small_model("bert", seed=1), names, gradients=False)
    with pytest.raises(ValueError, match="lack 'classifier'"):
        plain.require(model, [*names, "classifier"], gradients=False)
    with pytest.raises(FileNotFoundError, match="no statistics file"):
        Statistics.load(tmp_path / "missing")
    (tmp_path / "torn").write_bytes(b"\x10")
    with pytest.raises(ValueError, match="damaged, or holds no statistics"):
        Statistics.load(tmp_path / "torn")
    save_file({"a": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(ValueError, match="holds no statistics of version"):
        Statistics.load(tmp_path / "other")


def test_forms_of_data(tokenizer: transformers.PreTrainedTokenizerBase) -> None:
    ids = [tokenizer(text)["input_ids"] for text in SENTENCES]
    forms = [
        SENTENCES,
        Dataset.from_dict({"sentence": SENTENCES, "label": [0, 1, 0]}),
        [{"input_ids": row, "labels": 1} for row in ids],
        Dataset.from_dict({"input_ids": ids}),
    ]
    batches = [calibration_batches(form, tokenizer, batch_size=2) for form in forms]
    for other in batches[1:]:
        for a, b in zip(batches[0], other, strict=True):
            assert torch.equal(a["input_ids"], b["input_ids"])
            assert torch.equal(a["attention_mask"], b["attention_mask"])
    pairs = calibration_batches(Dataset.from_dict({"sentence1": SENTENCES, "sentence2": SENTENCES}), tokenizer)
    assert sum(len(batch["input_ids"]) for batch in pairs) == 6
    ready = [{"input_ids": token_ids(), "note": "kept out"}]
    assert list(calibration_batches(ready, None)[0]) == ["input_ids"]
    long = calibration_batches([" ".join(["word"] * 500)], tokenizer, max_length=16)
    assert long[0]["input_ids"].shape == (1, 16)


@pytest.mark.parametrize(
    ("data", "with_tokenizer", "message"),
    [
        ([], True, "calibration_dataset is empty"),
        (SENTENCES, False, "needs a tokenizer"),
        ([1, 2], True, "must hold texts or rows with columns: row 0 is 1"),
        (
            [{"label": 1}],
            True,
            "row 0 of calibration_dataset must be a text, or have a column of .*; its columns are label",
        ),
        (["a", {"sentence": None}], True, "row 1 of calibration_dataset must have a text in column 'sentence', got None"),
    ],
)
def test_bad_data(data: list, with_tokenizer: bool, message: str, tokenizer: transformers.PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match=message):
        calibration_batches(data, tokenizer if with_tokenizer else None)
