"""Blocks one at a time: each is fed, and answers, what it is in a whole forward pass, in every family."""

from __future__ import annotations

import pytest
import torch
from conftest import FAMILIES, small_model, token_ids
from torch import Tensor, nn

from heat_hf.encoders.batches import Batch
from heat_hf.encoders.blocks import Blocks, hidden_states
from heat_hf.encoders.linears import block_of, by_block, encoder_linears


def padded() -> Batch:
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[1, 4:] = 0
    return {"input_ids": token_ids(), "attention_mask": mask, "labels": torch.zeros(3, dtype=torch.long)}


def answers(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """What the blocks answer in one whole forward pass."""
    found: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda _m, _a, out, name=name: found.update({name: hidden_states(out)}))
        for name in names
    ]
    with torch.no_grad():
        model(**{key: value for key, value in padded().items() if key != "labels"})
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("head", [True, False], ids=["full", "headless"])
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "albert"])
def test_blocks_one_at_a_time_are_the_whole_pass(family: str, head: bool) -> None:
    model = small_model(family, head)
    names = list(encoder_linears(model))
    blocks = Blocks.of(model, reversed(names), padded())
    assert list(blocks.modules) == list(dict.fromkeys(map(block_of, names)))
    assert not blocks.others
    expected, state = answers(model, list(blocks.modules)), None
    with torch.no_grad():
        for name in blocks.modules:
            state = blocks.run(name, blocks.call(name, padded(), state))
            torch.testing.assert_close(state, expected[name], rtol=0, atol=0)
    assert all("forward" not in m.__dict__ and not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_a_block_can_be_told_other_hidden_states() -> None:
    model = small_model("bert")
    blocks = Blocks.of(model, encoder_linears(model), padded())
    first, second = blocks.modules
    told = torch.randn(3, 7, 24, generator=torch.Generator().manual_seed(0))
    assert torch.equal(blocks.call(second, padded(), told).hidden, told)
    assert blocks.call(first, padded(), None).hidden.shape == told.shape


def test_shared_blocks_and_modules_outside_blocks() -> None:
    albert = small_model("albert")
    blocks = Blocks.of(albert, encoder_linears(albert), padded())
    assert not blocks.modules
    assert blocks.others == ("albert.encoder.albert_layer_groups.0",)
    bert = small_model("bert")
    assert Blocks.of(bert, ["classifier", "bert.pooler.dense"], padded()) == Blocks(bert, {}, (), {})


def test_anothers_forward_is_put_back() -> None:
    """Libraries that offload weights put a forward of their own into a module."""
    model = small_model("bert")
    blocks = Blocks.of(model, encoder_linears(model), padded())
    first, second = blocks.modules.values()
    own = first.forward
    first.forward = own
    blocks.call(list(blocks.modules)[1], padded(), torch.zeros(3, 7, 24))
    assert first.__dict__["forward"] is own
    assert "forward" not in second.__dict__


def test_names_by_block() -> None:
    names = ["encoder.layer.0.a", "encoder.layer.1.a", "encoder.layer.0.b", "pooler"]
    assert by_block(names) == {"encoder.layer.0": [names[0], names[2]], "encoder.layer.1": [names[1]], "pooler": ["pooler"]}
