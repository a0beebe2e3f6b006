"""Layers in the place of linears: in memory, or in files where memory is short."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from conftest import small_model, token_ids

from heat_hf import HeatConfig
from heat_hf.compression.factorize import factorize
from heat_hf.encoders.linears import factorized_layers

BATCHES = [{"input_ids": token_ids(6, 9)}, {"input_ids": token_ids(6, 8)}]


@pytest.mark.parametrize("options", [{"widths": True, "groups": True}, {"decomposition": "tucker"}, {"dtype": torch.bfloat16}])
def test_cores_in_files_are_those_in_memory(options: dict[str, object], tmp_path: Path) -> None:
    """And are saved, copied and trained as any."""
    given = dict(options)
    dtype = given.pop("dtype", torch.float32)
    asked = {"target_edp_ratio": 0.5, "rank_search": "sensitivity", "sequence_length": 8, "refine_steps": 3, **given}
    memory, disk = (small_model("bert").to(dtype) for _ in range(2))
    for model, place in ((memory, "model"), (disk, "disk")):
        factorize(model, HeatConfig(**asked, calibration_memory=place), BATCHES)
    for name, layer in factorized_layers(disk).items():
        assert all(tensor.untyped_storage().filename for tensor in (*layer.parameters(), *layer.buffers())), name
    disk.save_pretrained(tmp_path)
    for other in (disk, copy.deepcopy(disk), type(disk).from_pretrained(tmp_path)):
        torch.testing.assert_close(dict(other.named_parameters()), dict(memory.named_parameters()), rtol=0, atol=0)
    disk(**BATCHES[0]).logits.sum().backward()
    torch.optim.SGD(disk.parameters(), 0.1).step()
    assert all(torch.isfinite(parameter).all() for parameter in disk.parameters())
