"""Calibration: moments equal those computed by hand, padding excluded, and every form of data is understood."""

from __future__ import annotations

import pytest
import torch
import transformers
from conftest import small_model, token_ids
from datasets import Dataset
from torch import nn

from heat_hf.encoders.batches import calibration_batches
from heat_hf.encoders.linears import encoder_linears
from heat_hf.encoders.statistics import collect_second_moments

SENTENCES = ["a short one", "a somewhat longer sentence than that", "the third"]


@pytest.fixture(scope="module")
def tokenizer(minilm: str) -> transformers.PreTrainedTokenizerBase:
    return transformers.AutoTokenizer.from_pretrained(minilm)


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
    moments = collect_second_moments(model, linears, batches)
    for name, inputs in seen.items():
        rows = []
        for i, x in enumerate(inputs):
            keep = batches[i * len(batches) // len(inputs)]["attention_mask"].bool()
            rows.append(x[keep] if x.shape[:2] == keep.shape else x.reshape(-1, x.shape[-1]))
        flat = torch.cat(rows).double()
        torch.testing.assert_close(moments[name], flat.T @ flat / len(flat), rtol=1e-4, atol=1e-6)


def test_layers_with_the_same_input_share_a_moment() -> None:
    model = small_model("bert")
    moments = collect_second_moments(model, encoder_linears(model), [{"input_ids": token_ids()}])
    base = "bert.encoder.layer.0.attention.self."
    assert moments[f"{base}query"] is moments[f"{base}key"] is moments[f"{base}value"]
    assert len({id(m) for m in moments.values()}) == 2 * 4


def test_training_mode_and_hooks_are_restored() -> None:
    model = small_model("bert").train()
    collect_second_moments(model, encoder_linears(model), [{"input_ids": token_ids()}])
    assert model.training
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_a_layer_that_is_never_reached() -> None:
    model = small_model("bert")
    model.unused = nn.Linear(4, 4)
    with pytest.raises(ValueError, match="never reaches 'unused'"):
        collect_second_moments(model, {"unused": model.unused}, [{"input_ids": token_ids()}])


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
        ([1, 2], True, "must hold strings"),
        ([{"label": 1}], True, "must hold strings"),
        ([{"sentence": None}], True, "must hold strings"),
    ],
)
def test_bad_data(data: list, with_tokenizer: bool, message: str, tokenizer: transformers.PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match=message):
        calibration_batches(data, tokenizer if with_tokenizer else None)
