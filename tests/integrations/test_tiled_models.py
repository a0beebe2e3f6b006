"""Models of layers on tiles: padding, saving, copies, compilers, exports, adapters, distillation, and what they refuse."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from conftest import FAMILIES, small_model, token_ids
from peft import LoraConfig, PeftModel, get_peft_model
from students import ROWS, apart, arguments, collate, train

from heat_hf import HeatCompressor, HeatConfig
from heat_hf.compression.factorize import factorize
from heat_hf.distillation import DistillationArguments, DistillationTrainer
from heat_hf.encoders.linears import encoder_linears, factorized_layers
from heat_hf.encoders.statistics import Statistics
from heat_hf.encoders.tiles import encoded_weights
from heat_hf.formats.setting import TensorSetting
from heat_hf.formats.strassen_tile import tiled

QUICK: dict[str, Any] = {
    "decomposition": "strassen_tile",
    "tile": 2,
    "rank": 4,
    "initial_values": "hadamard",
    "accelerator": None,
}
MASK = torch.tensor([[1] * 4 + [0] * 3, [1] * 5 + [0] * 2, [1] * 7])
RIGHT = [family for family in FAMILIES if family != "deberta-v2"]


def loud(model: Any) -> Any:
    """With weights large enough that tokens differ."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.mul_(8)
    return model


def compressed(family: str = "bert", head: bool = True, **options: Any) -> Any:
    model = loud(small_model(family, head))
    factorize(model, HeatConfig(**{**QUICK, **options}))
    return model.eval()


def said(model: Any, ids: torch.Tensor | None = None, mask: torch.Tensor | None = MASK) -> torch.Tensor:
    with torch.no_grad():
        return model(token_ids() if ids is None else ids, attention_mask=mask)[0]


@pytest.mark.parametrize("family", RIGHT)
def test_exact_algorithms_are_the_dense_model_and_survive_saving(family: str, tmp_path: Path) -> None:
    dense, model = loud(small_model(family)), loud(small_model(family))
    sizes = {name: (linear.out_features, linear.in_features) for name, linear in encoder_linears(model).items()}
    exact = {name: TensorSetting("strassen_tile", tiled(*size, 4), (49,)) for name, size in sizes.items()}
    factorize(model, HeatConfig(**{**QUICK, "initial_values": None}), settings=exact)
    torch.testing.assert_close(said(model), said(dense), rtol=1e-4, atol=1e-5)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(said(loaded), said(model))


@pytest.mark.parametrize("family", RIGHT)
def test_results_depend_neither_on_the_batch_nor_on_padding(family: str) -> None:
    model, ids = compressed(family, head=False), token_ids()
    whole = said(model)
    for row, mask in enumerate(MASK):
        tokens = int(mask.sum())
        alone = said(model, ids[row : row + 1, :tokens], None)
        torch.testing.assert_close(whole[row : row + 1, :tokens], alone, rtol=1e-4, atol=1e-5)
    longer = said(model, torch.cat((ids, ids), 1), torch.cat((MASK, torch.zeros_like(MASK)), 1))
    torch.testing.assert_close(longer[:, :7][MASK.bool()], whole[MASK.bool()], rtol=1e-4, atol=1e-5)
    for row, mask in enumerate(MASK[:2]):  # without the mask, padding would be seen
        tokens = int(mask.sum())
        assert not torch.allclose(said(model, ids, None)[row, :tokens], whole[row, :tokens], atol=1e-3)


def test_the_mask_is_found_wherever_it_is_given() -> None:
    model = compressed()
    with torch.no_grad():
        assert torch.equal(model(token_ids(), MASK)[0], said(model))
        assert torch.equal(model.bert(token_ids(), MASK)[0], model.bert(token_ids(), attention_mask=MASK)[0])


def test_copies_are_told_of_padding_too(tmp_path: Path) -> None:
    model = compressed()
    wanted = said(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(said(other), wanted)
    model.save_pretrained(tmp_path)
    headless = transformers.AutoModel.from_pretrained(tmp_path)
    torch.testing.assert_close(said(headless), said(model.bert))


def test_compilers_see_one_graph() -> None:
    model = compressed()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for ids, mask in ((token_ids(), MASK), (token_ids(2, 6), MASK[:2, :6])):
        torch.testing.assert_close(said(compiled, ids, mask), said(model, ids, mask))


class Logits(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=ids, attention_mask=mask).logits


def test_an_exported_program_takes_any_number_of_tokens() -> None:
    model = compressed()
    free = {0: torch.export.Dim("rows"), 1: torch.export.Dim("tokens", max=512)}
    program = torch.export.export(Logits(model), (token_ids(), MASK), dynamic_shapes=(free, free)).module()
    for tokens in (1, 2, 3, 6, 9):
        ids, mask = token_ids(2, tokens), torch.ones(2, tokens, dtype=torch.long)
        mask[1, max(1, tokens - 2) :] = 0
        torch.testing.assert_close(program(ids, mask), said(model, ids, mask))


def test_onnx_runtime_computes_the_same(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from heat_hf.hardware.machine.graphs import export

    model, path = compressed(), tmp_path / "model.onnx"
    free = {0: torch.export.Dim("rows"), 1: torch.export.Dim("tokens")}
    export(Logits(model).eval(), (token_ids(), MASK), path, input_names=["ids", "mask"], dynamic_shapes=(free, free))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for rows, tokens in ((1, 1), (2, 5), (3, 7)):
        ids = token_ids(rows, tokens)
        (found,) = session.run(None, {"ids": ids.numpy(), "mask": MASK[:rows, :tokens].numpy()})
        torch.testing.assert_close(torch.from_numpy(found), said(model, ids, MASK[:rows, :tokens]), rtol=1e-4, atol=1e-5)


def test_lora_lies_beside_the_layer_and_is_saved(tmp_path: Path) -> None:
    model = compressed()
    before = said(model)
    adapted = get_peft_model(model, LoraConfig(target_modules=["query", "dense"], r=2))
    assert torch.equal(said(adapted), before)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    trained = said(adapted)
    assert not torch.allclose(trained, before)
    adapted.save_pretrained(tmp_path)
    assert torch.equal(said(PeftModel.from_pretrained(compressed(), tmp_path)), trained)
    with pytest.raises(ValueError, match=r"strassen_tile layer cannot take in an adapter exactly: keep it beside$"):
        adapted.merge_and_unload()
    with pytest.raises(ValueError, match="compress with decomposition='low_rank', or use LoRA"):
        get_peft_model(compressed(), peft.LoHaConfig(target_modules=["query"], r=2))


@pytest.mark.parametrize("rate", [1.0, 0.1])
def test_encoded_weights_have_a_learning_rate_of_their_own(rate: float, tmp_path: Path) -> None:
    student = compressed()
    trainer = DistillationTrainer(student, loud(small_model("bert")), arguments(tmp_path, encoded_rate=rate), ROWS, collate)
    trainer.create_optimizer()
    encoded = encoded_weights(student)
    assert len(encoded) == len(factorized_layers(student))
    for group in trainer.optimizer.param_groups:
        own = {parameter in encoded for parameter in group["params"]}
        if rate != 1.0:
            assert len(own) <= 1
            assert group["lr"] == trainer.args.learning_rate * (rate if own == {True} else 1.0)
    with pytest.raises(ValueError, match="encoded_rate must be positive"):
        DistillationArguments(str(tmp_path), encoded_rate=0.0)


def test_a_distilled_student_comes_closer(tmp_path: Path) -> None:
    student, teacher = compressed(), loud(small_model("bert"))
    before, start = copy.deepcopy(student), apart(student, teacher)
    train(tmp_path, student, teacher, encoded_rate=2.0, max_steps=20)
    assert all(now < then for now, then in zip(apart(student, teacher), start, strict=True))
    pairs = zip(factorized_layers(before).values(), factorized_layers(student).values(), strict=True)
    assert not any(
        torch.equal(old, new) for layers in pairs for old, new in zip(*(layer.cores for layer in layers), strict=True)
    )


def calibration() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    masks = (torch.arange(12) < torch.randint(3, 13, (4, 1), generator=generator)).long()
    return [
        {"input_ids": torch.randint(3, 60, (4, 12), generator=generator), "attention_mask": masks.roll(number, 0)}
        for number in range(6)
    ]


def test_calibrated_layers_are_measured_on_their_inputs(tmp_path: Path) -> None:
    options = {**QUICK, "initial_values": "strassen", "refine_steps": 0}
    dense = loud(small_model("bert"))
    model = copy.deepcopy(dense)
    report = factorize(model, HeatConfig(**options), calibration())
    assert all(0 < tensor.output_error < 1 for tensor in report.tensors)
    plain = copy.deepcopy(dense)
    less = factorize(plain, HeatConfig(**{**options, "activation_aware": False}), calibration())
    assert sum(tensor.output_error for tensor in report.tensors) < sum(tensor.output_error for tensor in less.tensors)
    statistics = HeatCompressor(copy.deepcopy(dense)).statistics_of(HeatConfig(**options), calibration())
    statistics.save(tmp_path / "statistics.safetensors")
    again = copy.deepcopy(dense)
    factorize(again, HeatConfig(**options), statistics=Statistics.load(tmp_path / "statistics.safetensors"))
    assert torch.equal(said(again), said(model))
    with pytest.raises(ValueError, match="no moments of tiles of 2"):
        factorize(
            copy.deepcopy(dense), HeatConfig(**options),
            statistics=HeatCompressor(copy.deepcopy(dense)).statistics_of(HeatConfig(rank=4), calibration()),
        )  # fmt: skip


def test_blocks_are_refined(tmp_path: Path) -> None:
    model = loud(small_model("bert"))
    report = factorize(model, HeatConfig(**{**QUICK, "refine_steps": 20}), calibration())
    assert report.refinement is not None
    assert all(block.after < block.before for block in report.refinement.blocks)
    assert all(tensor.output_error is not None for tensor in report.tensors)


def test_padding_on_the_left_is_refused() -> None:
    model = compressed()
    with pytest.raises(ValueError, match=r"padding at the right.*padding_side"):
        said(model, mask=MASK.flip(1))
    with pytest.raises(ValueError, match="attention_mask of rows × tokens"):
        said(model, mask=torch.ones(3, 1, 7, 7))
    said(model)  # the next forward pass is as ever


def test_gradient_checkpointing_is_refused() -> None:
    model = compressed().train()
    model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="do not work with gradient checkpointing"):
        model(token_ids(), attention_mask=MASK)


def test_layers_that_read_something_else_than_tokens_are_refused_before_work_starts() -> None:
    with pytest.raises(ValueError, match=r"reads .1, 32. rows and tokens.*exclude="):
        factorize(small_model("deberta-v2"), HeatConfig(**QUICK))
    with pytest.raises(ValueError, match=r"reads sequences.*poolers and heads"):
        factorize(small_model("bert"), HeatConfig(**QUICK, modules=["pooler"]))
    compressed("deberta-v2", exclude=["query_proj", "key_proj"])


def test_a_model_that_is_dense_again_needs_no_mask() -> None:
    model = compressed()
    with pytest.raises(ValueError, match="no dense layer does the same"):
        model.dequantize()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 5}, "tile must be"),
        ({"shared_encoders": "block"}, "shared_encoders must be one of size, model"),
        ({"shared_encoders": "size"}, "shared_encoders needs refine_steps=0"),
        ({"initial_values": "zeros"}, "initial_values must be one of strassen, als, hadamard, random"),
        ({"rank_search": "sensitivity", "rank": None, "target_params_ratio": 0.5}, "has no ranks to search"),
        ({"shape": "12x2:12x2"}, "takes tile in the place of shape"),
        ({"match_variance": True}, "has no use for match_variance=True"),
        ({"loss_aware": True}, "has no use for loss_aware=True"),
        ({"decomposition": "low_rank", "initial_values": None}, "tile is for strassen_tile alone"),
        ({"decomposition": "strassen"}, "unknown decomposition 'strassen'; known are .*strassen_tile"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HeatConfig(**{**QUICK, **options})


def test_ranks_that_save_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="840 multiply-accumulates a token, the dense matrix only 576"):
        factorize(small_model("bert"), HeatConfig(**{**QUICK, "rank": 7}))
    with pytest.raises(ValueError, match="does not divide into tiles of 3"):
        factorize(transformers.AutoModel.from_config(_odd()), HeatConfig(**{**QUICK, "tile": 3}))


def _odd() -> Any:
    return transformers.BertConfig(
        vocab_size=60, hidden_size=20, num_hidden_layers=1, num_attention_heads=4, intermediate_size=40
    )


def test_the_card_says_what_the_error_is_and_that_nothing_is_saved(tmp_path: Path) -> None:
    model = small_model("bert")
    HeatCompressor(model).compress(HeatConfig(**{**QUICK, "accelerator": "simba-l"}), save_directory=tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert re.search(
        r"[\d.]+ times the energy-delay product \(EDP\) \([\d.]+ times as much for the whole model\) on simba-l", card
    )
    assert "times less" not in card
    assert "Error: ‖P − I⊗W‖/‖I⊗W‖, P what a layer does to a tile of tokens, as compressed" in card
