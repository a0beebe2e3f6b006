"""Networks that lose whole Transformer blocks, from search to disk: every family, what is exact, and what is refused."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import FAMILIES, small_model, token_ids
from grouped import OPTIONS, batches, said

from heat_hf import CompressionReport, HeatCompressor, HeatConfig, Statistics
from heat_hf.compression.factorize import factorize
from heat_hf.encoders.blocks import Blocks
from heat_hf.encoders.config import FactorizedConfig
from heat_hf.encoders.dropping import drop_blocks, droppable, dropped_setting, renumbered
from heat_hf.encoders.linears import block_of, by_block, encoder_linears, factorized_layers
from heat_hf.formats import TensorShape
from heat_hf.formats.setting import TensorSetting
from heat_hf.formats.size import MatrixSize
from heat_hf.reports.ranks import RankRecord

OTHERS = ("albert", "modernbert")
WHOLE = tuple(family for family in FAMILIES if family not in OTHERS)


def deep_model(family: str = "bert", blocks: int = 4) -> Any:
    """A small model with more blocks, each of which changes what it reads."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **FAMILIES[family][0])
    config.num_hidden_layers = blocks
    return transformers.AutoModelForSequenceClassification.from_config(config).eval()


def silent(model: Any, number: int) -> Any:
    """Let a block of a BERT answer what it reads, nearly, and all others something else."""
    with torch.no_grad():
        for place, block in enumerate(model.bert.encoder.layer):
            for linear in (
                block.attention.self.value,
                block.attention.output.dense,
                block.intermediate.dense,
                block.output.dense,
            ):
                linear.weight *= 1e-3 if place == number else 10
    return model


def settings_of(model: Any, gone: Sequence[int], rank: int | None = None) -> dict[str, Any]:
    """Without some blocks; all else dense, or of a rank."""
    linears = encoder_linears(model)
    numbers = {block: number for number, block in enumerate(by_block(linears))}
    sizes = {name: MatrixSize.of(linear) for name, linear in linears.items()}
    kept = {n: rank and TensorSetting("low_rank", TensorShape.matrix(*size), (rank,)) for n, size in sizes.items()}
    return {n: dropped_setting(size) if numbers[block_of(n)] in gone else kept[n] for n, size in sizes.items()}


def dropped(model: Any, gone: Sequence[int], rank: int | None = None, **options: Any) -> CompressionReport:
    config = HeatConfig(**{**OPTIONS, "target_params_ratio": 0.5, "refine_steps": 0, **options})
    return factorize(model, config, batches(), settings_of(model, gone, rank))


@pytest.mark.parametrize("family", WHOLE)
@pytest.mark.parametrize("number", [0, 1])
def test_families(family: str, number: int, tmp_path: Path) -> None:
    model = small_model(family)
    linears, inputs = encoder_linears(model), {"input_ids": token_ids()}
    blocks = Blocks.of(model, linears, inputs)
    with blocks.skipped([list(blocks.modules)[number]]):
        expected = said(model)
    assert not torch.equal(expected, said(model))
    report = dropped(model, [number])
    assert model.config.num_hidden_layers == 1 and torch.equal(said(model), expected)
    assert report.compressed_model_parameters == model.num_parameters()
    assert report.params_ratio == pytest.approx(0.5) and f"1 of 2 blocks dropped: {list(blocks.modules)[number]}" in str(report)
    model.save_pretrained(tmp_path)
    loaded, about = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert torch.equal(said(loaded), expected) and not any(about["missing_keys"]) and not any(about["unexpected_keys"])
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text()), "an ordinary model of fewer blocks"


@pytest.mark.parametrize("family", OTHERS)
def test_other_families_are_refused_before_work(family: str) -> None:
    model = small_model(family)
    before = said(model)
    with pytest.raises(ValueError, match=f"^{family} cannot lose blocks, .*: leave out blocks=True$"):
        HeatCompressor(model).compress(HeatConfig(**OPTIONS, target_params_ratio=0.5, blocks=True), batches())
    assert torch.equal(said(model), before)


def test_decoders_and_convolutions_are_refused() -> None:
    for family, fields in (("bert", {"is_decoder": True}), ("deberta-v2", {"conv_kernel_size": 3})):
        model = small_model(family)
        for name, value in fields.items():
            setattr(model.config, name, value)
        with pytest.raises(ValueError, match="cannot lose blocks"):
            droppable(model, encoder_linears(model))


@pytest.mark.parametrize("gone", [(0,), (1, 2), (3,), (0, 2)])
def test_the_rest_is_factorized_and_renumbered(gone: tuple[int, ...], tmp_path: Path) -> None:
    model = deep_model()
    report = dropped(model, gone, rank=5)
    layers = factorized_layers(model)
    assert len(layers) == 6 * (4 - len(gone)) and model.config.num_hidden_layers == 4 - len(gone)
    assert set(layers) == set(model.config.quantization_config.tensors)
    assert report.compressed_model_parameters == model.num_parameters()
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(said(loaded), said(model))
    headless = transformers.AutoModel.from_pretrained(tmp_path)
    assert len(factorized_layers(headless)) == len(layers)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(said(other), said(model))
    plain = copy.deepcopy(loaded).dequantize()
    torch.testing.assert_close(said(plain), said(model), rtol=1e-4, atol=1e-5)
    plain.save_pretrained(tmp_path / "dense")
    torch.testing.assert_close(said(type(model).from_pretrained(tmp_path / "dense")), said(plain))
    model.bfloat16().save_pretrained(tmp_path / "short")
    short = type(model).from_pretrained(tmp_path / "short", dtype=torch.bfloat16)
    assert torch.equal(said(short), said(model))


def test_adapters() -> None:
    from peft import LoraConfig, get_peft_model

    model = deep_model()
    dropped(model, [1], rank=5)
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(target_modules=["query"], r=2, init_lora_weights=False))
    assert len(adapted.targeted_module_names) == 2 * 3
    after = said(adapted)
    assert not torch.equal(after, said(model))
    torch.testing.assert_close(said(adapted.merge_and_unload()), after, rtol=1e-4, atol=1e-5)


def test_measured_divergences_weigh_less_where_losses_are_understated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice follows what a projected network is measured at: the more that is, the sooner blocks go."""
    from heat_hf.compression.job import Job

    config = HeatConfig(**OPTIONS, target_params_ratio=0.3, blocks=True, refine_steps=0)
    numbers, asked = [], list[Any]()
    for apart in (0.0, 1e6):
        monkeypatch.setattr(Job, "_diverges", lambda job, settings, apart=apart: asked.append(settings) or apart)
        report = HeatCompressor(silent(deep_model(blocks=6), 9)).compress(config, batches())
        numbers.append(0 if report.dropped is None else len(report.dropped.blocks))
    assert numbers[0] < numbers[1] and len(asked) == 2, "one network is projected to see"


def test_each_block_that_is_left_learns_from_what_it_stands_for(tmp_path: Path) -> None:
    from students import ROWS, arguments, collate, train

    from heat_hf.distillation import DistillationTrainer

    teacher = deep_model()
    student = copy.deepcopy(teacher)
    dropped(student, [1], rank=5)
    student.save_pretrained(tmp_path / "student")
    loaded = type(student).from_pretrained(tmp_path / "student")
    for one in (student, loaded):
        trainer = DistillationTrainer(one, teacher, arguments(tmp_path / "run", recipe="layers"), ROWS, collate)
        assert list(trainer.taught) == [1, 2, 3], "four blocks are no multiple of three, and the first stands for the second"
    before = said(loaded)
    train(tmp_path / "run", loaded, teacher, recipe="two-stage", max_steps=4)
    assert not torch.equal(said(loaded), before) and torch.isfinite(said(loaded)).all()
    for gone, places in (((0,), [1, 2, 3]), ((3,), [0, 1, 3]), ((1, 2), [2, 3])):
        other = copy.deepcopy(teacher)
        dropped(other, gone, rank=5)
        assert other.config.quantization_config.blocks == places
    plain = copy.deepcopy(teacher)
    dropped(plain, [1])
    with pytest.raises(ValueError, match="must divide the teacher's"):
        DistillationTrainer(plain, teacher, arguments(tmp_path / "run", recipe="layers"), ROWS, collate)


@pytest.mark.parametrize("blocks", [[], [1, 1], [2, 1], [-1], ["1"], 3])
def test_odd_numbers_of_blocks_are_refused(blocks: Any) -> None:
    setting = {"format": "low_rank", "shape": [[4], [4]], "rank": [1]}
    with pytest.raises(ValueError, match="blocks of the quantization_config must"):
        FactorizedConfig(tensors={"a": setting}, blocks=blocks)  # type: ignore[dict-item]


def test_export(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    torch_export = pytest.importorskip("onnxscript")
    assert torch_export
    model, inputs = deep_model(), (token_ids(), torch.ones_like(token_ids()))
    dropped(model, [0, 2], rank=5)
    with torch.no_grad():
        torch.onnx.export(model, inputs, str(tmp_path / "model.onnx"), dynamo=True, input_names=["ids", "mask"])
        expected = model(*inputs).logits
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    (found,) = session.run(None, {"ids": inputs[0].numpy(), "mask": inputs[1].numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)


def test_names_move_up() -> None:
    gone = ["bert.encoder.layer.1", "bert.encoder.layer.3"]
    for before, after in ((0, 0), (2, 1), (10, 8)):
        name = "bert.encoder.layer.{}.output.dense"
        assert renumbered(name.format(before), gone) == name.format(after)
    assert renumbered("bert.pooler.dense", gone) == "bert.pooler.dense"


@pytest.mark.parametrize("accelerator", [None, "simba-l"])
@pytest.mark.parametrize("more", [{}, {"widths": True, "groups": True}])
def test_a_block_that_says_nothing_goes(accelerator: str | None, more: dict[str, Any], tmp_path: Path) -> None:
    target = {"target_params_ratio": [0.3, 0.6]} if accelerator is None else {"target_edp_ratio": [0.45, 0.6]}
    options = {**OPTIONS, **more, **target, "accelerator": accelerator}
    model = silent(deep_model(), 1)
    configs = [HeatConfig(**options, blocks=blocks) for blocks in (True, False)]
    found = [HeatCompressor(model).search_ranks(config, batches()) for config in configs]
    for ours, theirs in zip(found[0].variants, found[1].variants, strict=True):
        assert ours.loss < theirs.loss
        gone = {block_of(name) for name, setting in ours.settings.items() if setting and setting.format == "dropped"}
        assert "bert.encoder.layer.1" in gone
        limited = ours.params_ratio if accelerator is None else ours.edp_ratio
        assert limited <= ours.budget * (1 + 1e-9) and ours.expected_divergence is not None
    found[0].save(tmp_path / "record.json")
    record = RankRecord.load(tmp_path / "record.json")
    assert record == found[0] and "dropped" in str(record)
    report = HeatCompressor(model).compress(HeatConfig(**{**options, **dict.fromkeys(target, 0.5)}), batches(),
                                            variant=record.variants[0])  # fmt: skip
    assert {t.name: t.setting for t in report.tensors} == dict(record.variants[0].settings)
    again = CompressionReport.from_dict(json.loads(report.to_json()))
    assert again == report and again.dropped is not None and again.dropped.of == 4


def test_a_choice_with_blocks_is_never_worse_and_what_a_set_loses_is_measured() -> None:
    from heat_hf.compression.job import Job
    from heat_hf.evaluation.quality import Quality

    model = deep_model(blocks=6)
    config = HeatConfig(**OPTIONS, target_params_ratio=[0.15, 0.4, 0.8], blocks=True)
    job = Job(model, config, batches())
    curves = config.method._curves(job.problem)  # type: ignore[attr-defined]
    assert [len(gone) for gone in curves.gone] == [1] * 6 + [2] * 4 + [3] * 4
    quality = Quality(model, batches())
    for gone, lost in curves.gone.items():
        short = copy.deepcopy(model)
        drop_blocks(short, gone)
        assert quality.both(short)[1] == pytest.approx(lost, rel=1e-4)
    alone = HeatCompressor(model).search_ranks(HeatConfig(**OPTIONS, target_params_ratio=[0.15, 0.4, 0.8]), batches())
    ours = HeatCompressor(model).search_ranks(config, batches())
    for one, other in zip(ours.variants, alone.variants, strict=True):
        assert one.loss <= other.loss * (1 + 1e-9)


@pytest.mark.parametrize("gone", [(1,), (0,), (0, 1), (3,), (1, 3)])
def test_the_block_before_is_refined_towards_what_the_dropped_one_answers(gone: tuple[int, ...]) -> None:
    dense, data = deep_model(), batches()
    plain, refined = copy.deepcopy(dense), copy.deepcopy(dense)
    settings = settings_of(dense, gone, 8)
    reports = [factorize(m, HeatConfig(**{**OPTIONS, "target_params_ratio": 0.5, "refine_steps": n}), data, settings)
               for m, n in ((plain, 0), (refined, 60))]  # fmt: skip
    kept = [number for number in range(4) if number not in gone]
    found = reports[1].refinement
    assert found is not None and [int(block.name[-1]) for block in found.blocks] == kept
    assert reports[1].fidelity.measured < reports[0].fidelity.measured
    # The figures are those of hidden states: of the dense model behind the last block that a kept one stands for.
    with torch.no_grad():
        states = dense.bert(data[4]["input_ids"], output_hidden_states=True).hidden_states
        ours = refined.bert(data[4]["input_ids"], output_hidden_states=True).hidden_states
    for place, number in enumerate(kept):
        last = max(n for n in range(4) if all(m in gone for m in range(number + 1, n + 1)) and n >= number)
        apart = float((ours[place + 1] - states[last + 1]).norm() / states[last + 1].norm())
        assert found.blocks[place].after == pytest.approx(apart, rel=1e-3)


def test_blocks_that_stay_dense_between_dropped_ones() -> None:
    dense = deep_model()
    settings = settings_of(dense, [1], 8)
    settings |= {name: None for name in settings if ".2." in name}
    model = copy.deepcopy(dense)
    report = factorize(model, HeatConfig(**OPTIONS, target_params_ratio=0.5, refine_steps=40), batches(), settings)
    assert report.refinement is not None
    assert [(block.name[-1], block.after < block.before) for block in report.refinement.blocks] == [("0", True), ("3", True)]
    with torch.no_grad():
        states, ours = (m.bert(batches()[4]["input_ids"], output_hidden_states=True).hidden_states for m in (dense, model))
    apart = float((ours[-1] - states[-1]).norm() / states[-1].norm())
    assert report.refinement.blocks[-1].after == pytest.approx(apart, rel=1e-3)


def test_an_error_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = deep_model()
    before, blocks = said(model), list(model.bert.encoder.layer)

    def fail(*args: Any) -> None:
        assert model.config.num_hidden_layers == 3
        raise RuntimeError("no more")

    monkeypatch.setattr("heat_hf.compression.job.attach", fail)
    with pytest.raises(RuntimeError, match="no more"):
        dropped(model, [1], rank=5)
    assert torch.equal(said(model), before) and list(model.bert.encoder.layer) == blocks
    assert model.config.num_hidden_layers == 4 and not factorized_layers(model)


def test_what_cannot_be_is_refused() -> None:
    model = deep_model()
    settings = settings_of(model, [1])
    name = next(name for name in settings if ".1." in name)
    with pytest.raises(ValueError, match=r"bert\.encoder\.layer\.1 cannot be dropped without all of its matrices"):
        factorize(model, HeatConfig(**OPTIONS, target_params_ratio=0.5), batches(), {**settings, name: None})
    with pytest.raises(ValueError, match="one has to stay"):
        factorize(model, HeatConfig(**OPTIONS, target_params_ratio=0.5), batches(), settings_of(model, range(4)))
    excluded = encoder_linears(model, exclude=[r"\.1\.output"])
    assert [block[-1] for block in droppable(model, excluded)] == ["0", "2", "3"]
    statistics = Statistics.collect(model, encoder_linears(model), batches(), gradients=True)
    config = HeatConfig(**OPTIONS, target_params_ratio=0.5, blocks=True)
    with pytest.raises(ValueError, match="blocks=True needs the rows of a calibration_dataset"):
        HeatCompressor(model).search_ranks(config, statistics=statistics)
    with pytest.raises(ValueError, match="blocks=True needs rank_search='sensitivity'"):
        HeatConfig(target_params_ratio=0.5, blocks=True)
    with pytest.raises(ValueError, match="decomposition must be one of"):
        HeatConfig(target_params_ratio=0.5, decomposition="dropped")


def test_no_saved_model_has_a_dropped_matrix(tmp_path: Path) -> None:
    model = deep_model()
    dropped(model, [1], rank=5)
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    tensors = config["quantization_config"]["tensors"]
    name = next(iter(tensors))
    tensors[name] = {**tensors[name], "format": "dropped", "rank": []}
    path.write_text(json.dumps(config))
    with pytest.raises((OSError, ValueError), match="dropped"):
        type(model).from_pretrained(tmp_path)


def test_costs_are_those_of_the_saved_model(tmp_path: Path) -> None:
    from heat_hf.encoders.cost import model_cost
    from heat_hf.hardware.analytic import cost_model
    from heat_hf.reports.model_page import page_data

    model = HeatCompressor(silent(deep_model(), 2))
    config = HeatConfig(**{**OPTIONS, "accelerator": "simba-l"}, target_edp_ratio=0.4, blocks=True, refine_steps=0)
    report = model.compress(config, batches(), tmp_path / "model")
    assert report.dropped is not None and report.hardware is not None
    costed = model_cost(str(tmp_path / "model"), cost_model("simba-l"), 16)
    assert report.hardware.now.edp == pytest.approx(costed.total.edp)
    page = page_data(tmp_path / "model")
    assert sum(page["levels"]["energy"]["now"]) < sum(page["levels"]["energy"]["dense"])
    card = (tmp_path / "model" / "README.md").read_text()
    assert str(report.dropped) in card


def test_a_machine_counts_what_is_between_the_matrices_of_blocks_that_stay() -> None:
    from heat_hf.hardware.between import Between
    from heat_hf.hardware.cost import Cost
    from heat_hf.hardware.gemm import Gemm
    from heat_hf.hardware.protocol import CostModel
    from heat_hf.search.ranks.space import Costs, matrices_of

    class Machine(CostModel):
        name, digest, units = "machine", "0", ()

        def gemm(self, gemm: Gemm) -> Cost:
            return Cost(1.0)

        def between(self, work: Between, units: int) -> Cost:
            return Cost(10.0)

    model = deep_model()
    linears = encoder_linears(model)
    costs = Costs(matrices_of(model, linears, 1, 16), 16, Machine())
    assert costs.dense.seconds == 4 * (6 + 20)
    assert costs.total(settings_of(model, [1, 3])).seconds == 2 * (6 + 20)


def test_the_option() -> None:
    from heat_hf.cli import build_parser
    from heat_hf.cli.values import heat_config

    line = ["search", "ranks", "some/model", "--output", "there", "--target-edp-ratio", "0.3"]
    assert [heat_config(build_parser().parse_args([*line, *more])).blocks for more in ([], ["--blocks"])] == [False, True]
