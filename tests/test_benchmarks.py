"""What benchmarks compute themselves, on small random models."""

from __future__ import annotations

import copy
import importlib
import pkgutil

import pytest
import torch
from conftest import small_model, token_ids

import benchmarks
from benchmarks import amdahl, cost_paper, growth, kwon, machine_search, strassen_tables
from benchmarks.pruned import Masks, Tuning, remove
from benchmarks.sparse import make_plain, make_sparse, two_of_four
from heat_hf import TensorSetting
from heat_hf.encoders.batches import Batch
from heat_hf.encoders.linears import encoder_linears
from heat_hf.encoders.together import head_groups, narrowed, width_groups
from heat_hf.formats.size import MatrixSize
from heat_hf.hardware import cost_model


def batch() -> Batch:
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[1, 4:] = 0
    return {"input_ids": token_ids(), "attention_mask": mask}


def answer(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch())[0]


def drawn(model: torch.nn.Module, seed: int = 0) -> Masks:
    """About half of heads and neurons, and no head at all in the last block."""
    generator = torch.Generator().manual_seed(seed)
    masks = [[torch.rand(len(mask), generator=generator).round() for mask in pair] for pair in kwon.ones(model)]
    masks[-1][0].zero_()
    return masks


def test_masks_of_ones_change_nothing() -> None:
    model = small_model("bert")
    with kwon.masked(model, kwon.ones(model)):
        assert torch.equal(answer(model), answer(small_model("bert")))


@pytest.mark.parametrize("head", [True, False])
def test_a_removed_model_is_the_masked_one(head: bool) -> None:
    model = small_model("bert", head)
    masks = drawn(model)
    with kwon.masked(model, masks):
        expected = answer(model)
    before = sum(p.numel() for p in model.parameters())
    remove(model, masks)
    torch.testing.assert_close(answer(model), expected)
    assert sum(p.numel() for p in model.parameters()) < before


def test_fisher_is_that_of_single_sequences() -> None:
    """A batch gives what its sequences give one by one, where the same directions are drawn."""
    model = small_model("bert")
    whole = kwon.fisher(model, [batch()], seed=0)
    rows = [{key: value[i : i + 1] for key, value in batch().items()} for i in range(3)]
    single = kwon.fisher(model, rows, seed=0)
    for pair, other in zip(whole, single, strict=True):
        for one, two in zip(pair, other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-7)


def test_search_keeps_the_budget_and_the_best() -> None:
    model = small_model("bert")
    price = kwon.Price(model, cost_model("simba-l"))
    dense = price.of(kwon.ones(model)).edp
    information = [[torch.arange(len(mask)).float().diag() for mask in pair] for pair in kwon.ones(model)]
    masks = kwon.search(information, price, dense / 2)
    assert price.of(masks).edp <= dense / 2
    for mask in (mask for pair in masks for mask in pair):
        assert mask.tolist() == sorted(mask.tolist())  # the last of a block matter most
    with pytest.raises(ValueError, match="cannot be reached"):
        kwon.search(information, price, 0.0)


def test_rearranging_sees_what_two_have_in_common() -> None:
    """Two neurons that cancel each other go together, though each alone matters more than the others."""
    information = torch.diag(torch.tensor([2.0, 2.0, 1.0, 1.0]))
    information[0, 1] = information[1, 0] = -1.9
    mask = torch.tensor([0.0, 1.0, 0.0, 1.0])
    assert kwon.rearranged(mask, information).tolist() == [0, 0, 1, 1]
    assert kwon.rearranged(torch.ones(4), information).tolist() == [1] * 4


def test_tuning_leaves_a_whole_model_and_mends_a_pruned_one() -> None:
    dense = small_model("bert", head=False)
    whole, pruned = copy.deepcopy(dense), copy.deepcopy(dense)
    Tuning(whole, dense, [batch()]).run()
    torch.testing.assert_close(answer(whole), answer(dense), rtol=1e-3, atol=1e-4)
    remove(pruned, drawn(pruned))
    kept = batch()["attention_mask"].bool()
    before = (answer(pruned) - answer(dense))[kept].norm()
    Tuning(pruned, dense, [batch()]).run()
    assert (answer(pruned) - answer(dense))[kept].norm() < before


def test_a_mixture_gives_every_block_something() -> None:
    choices = [cost_paper.Choice(name, figures) for name, figures in (("a", (1.0, 2.0, 3.0)), ("b", (4.0, 0.0, 1.0)))]
    figures, labels = cost_paper.mixtures(choices)
    assert len(labels) == 2 + cost_paper.BLOCKS - 1
    assert figures[labels.index("12 × a")].tolist() == [12, 24, 36]
    assert figures[labels.index("5 × a, 7 × b")].tolist() == [33, 10, 22]


def test_what_is_outermost_is_never_beaten() -> None:
    cheap, middle, dear, beaten = (
        cost_paper.Choice(name, figures)
        for name, figures in (("c", (1.0, 1.0, 1.0)), ("m", (6.0, 2.0, 2.0)), ("d", (8.0, 8.0, 8.0)), ("b", (5.0, 3.0, 3.0)))
    )
    assert cost_paper.outermost([cheap, middle, dear, beaten]) == [cheap, middle, dear]


SERVED = {"serving_app"}  # needs the server that it is for
BENCHMARKS = sorted({module.name for module in pkgutil.iter_modules(benchmarks.__path__)} - SERVED)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_finds_what_it_uses(name: str) -> None:
    importlib.import_module(f"benchmarks.{name}")


def test_growth_is_fitted_by_a_line() -> None:
    same = {"processor_minutes": 1.0, "GiB": 1.0, "model_GiB": 0.5}
    cases = ((1, 8, 768), (3, 8, 768), (3, 9, 768), (9, 8, 1024))
    rows = [{"blocks": b, "tokens": t, "hidden": w, "minutes": 2.0 + 3 * b, **same} for b, t, w in cases]
    about = {"gain": 5.7, "command": "", "machine": "", "versions": {}}
    data = {"rows": rows, "fixed_tokens": 8, "fixed_blocks": 3, **about}
    assert growth.line(growth.panels(data)["blocks"], "blocks", "minutes") == pytest.approx((3, 2, 1))
    assert [row["tokens"] for row in growth.panels(data)["tokens"]] == [8, 9]
    assert "| 768 | 3 | 9 | 11.0 | 1.0 | 1.0 | 0.5 |" in growth.table(data)


def test_what_is_left_of_a_model_whose_parts_shrink() -> None:
    """Half of the neurons and one of two heads of the first block; its matrices are then half as large, or a quarter."""
    dense = small_model("bert")
    linears = encoder_linears(dense)
    assert set(amdahl.left(dense, small_model("bert")).values()) == {1.0}
    groups = list(width_groups(dense, linears))
    settings: dict[str, TensorSetting] = {}
    for names in (next(group for group in groups if len(group) == size) for size in (2, 4)):
        sizes = [MatrixSize.of(linears[name]) for name in names]
        own = narrowed(sizes, sizes[-1].columns // 2)
        settings |= {name: setting for name, setting in zip(names, own, strict=True) if setting is not None}
    smaller = machine_search.shaped(dense, {name: setting.to_dict() for name, setting in settings.items()})
    assert answer(smaller).shape == answer(dense).shape
    whole = sum(MatrixSize.of(linear).elements for linear in linears.values())
    gone = sum(MatrixSize.of(linears[name]).elements / 2 for name in settings)
    blocks = len(head_groups(dense, linears))
    expected = {"products": 1 - gone / whole, "activation": 1 - 0.5 / blocks, "attention": 1 - 0.5 / blocks}
    assert amdahl.left(dense, smaller) == pytest.approx(expected)


def test_two_of_four_weights_stay_the_largest_or_those_that_outputs_see() -> None:
    weight = torch.tensor([[4.0, -3.0, 2.0, 1.0, 0.0, 5.0, -6.0, 7.0]])
    assert two_of_four(weight).tolist() == [[1, 1, 0, 0, 0, 0, 1, 1]]
    seen = torch.diag(torch.tensor([1e-4, 1.0, 1.0, 100.0, 1.0, 1.0, 1.0, 1e-4]))
    assert two_of_four(weight, seen).tolist() == [[0, 1, 0, 1, 0, 1, 1, 0]]


def test_masks_stay_through_training_and_are_zeros_afterwards() -> None:
    model = small_model("bert")
    linears = encoder_linears(model)
    make_sparse(linears)
    masks = {name: two_of_four(linear.weight_orig) for name, linear in linears.items()}
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    for _ in range(2):
        model(**batch())[0].square().sum().backward()
        optimizer.step()
    before = answer(model)
    make_plain(linears)
    torch.testing.assert_close(answer(model), before)
    assert all(torch.equal(linear.weight != 0, masks[name].bool()) for name, linear in linears.items())
    assert not any(name.endswith(("_orig", "_mask")) for name in model.state_dict())


def test_a_table_of_trained_structures_has_a_row_for_each() -> None:
    common = {
        "schedule": {"max_steps": 1000},
        "macs_ratio": 0.5,
        "params_ratio": 1.5,
        "untrained_score": 0.8,
        "divergence": 0.1,
    }
    rows = {
        "tiles 0": {"structure": "tiles", "edp_gain": 0.9, "time": 1.1, "score": 0.90, **common},
        "tiles 1": {"structure": "tiles", "edp_gain": 0.9, "time": 1.3, "score": 0.92, **common},
        "2:4 0": {"structure": "2:4", "time": 1.0, "score": 0.91, **common},
    }
    data = {"rows": rows, "dense": {"SST-2": 0.93}, "command": "c", "machine": "m", "versions": {}}
    lines = strassen_tables.trained(data).splitlines()
    assert lines[3] == "| tiles | 0.50 | 1.50 | 0.90× | 1.20 | 0.8000 | 0.9100 (0.9000–0.9200, 2 seeds) | 0.1000 |"
    assert lines[4] == "| 2:4 | 0.50 | 1.50 | – | 1.00 | 0.8000 | 0.9100 | 0.1000 |"
