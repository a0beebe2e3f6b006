"""HeatConfig: every field is checked for type and range before work, and what is taken can be saved."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from conftest import small_model, token_ids
from fuzzing import require_told

from heat_hf import HeatCompressor, HeatConfig, TensorShape
from heat_hf.encoders.linears import factorized_layers

BATCHES = [{"input_ids": half} for half in token_ids(12, 9).split(6)]
HUGE = 10**5000  # of more digits than Python prints


class Unprintable:
    """Has no representation, and is not hashable."""

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        raise RuntimeError("no representation")


# Field → values that are none of it.
BAD: dict[str, list[Any]] = {
    "decomposition": [1, None, ["cp"], {"cp"}, "svd", b"cp", Unprintable()],
    "rank_search": [1, None, ["uniform"], {}, "best"],
    "target_params_ratio": ["0.5", True, 0, 1, -0.1, float("nan"), float("inf"), HUGE, {0.5}, [], [0.5, 0.5], [0.5, None]],
    "target_edp_ratio": ["0.5", 1.0, float("nan"), [0.5, 2], {"24x24": 0.5}],
    "target_latency_ratio": ["0.5", 1.0, 0, HUGE, [0.5, 2]],
    "target_latency": [0, -1, float("nan"), float("inf"), HUGE, "1ms", True],
    "rank": [0, -1, 2.5, True, "4", [], [4, "5"], {}, {4: 4}, {"24x24": True}, {"24": 4}, HUGE, [1] * 99, float("nan"), {3}],
    "shape": [True, 7, "", "x", "a:b", "24:24:24", [], [[], []], [[24], "24"], {"24x24": 1}, {1: "24:24"}, "1x" * 20 + "24:24",
              [[1] * 20 + [24], [24]], HUGE, [HUGE], "9" * 5000, float("nan"), {24}, [True, 24]],
    "cost_table": [1, True, "", b"table", ["table"], "a\0b"],
    "activation_aware": ["false", "no", 1, 0, float("nan"), [], Unprintable()],
    "loss_aware": ["true", 1, 2.0, {}],
    "match_variance": ["no", None, 1, float("inf"), {1}, "True"],
    "execution": ["fast", None, 1, ["auto"]],
    "sequence_length": [0, -3, 2.0, "128", True, HUGE, 10**6, None, float("nan"), [128]],
    "batch_size": [0, 1.5, "1", False, 10**400, None],
    "accelerator": [1, True, "", ["simba-l"], b"simba-l", 2.5],
    "runtime": ["tflite", None, 1],
    "precision": ["bf16", None, 8],
    "modules": ["query", [1], {"query"}, ["("], [b"query"], [None], ["(a+)+$"], [".*" * 9], ["((x){999}){999}"], ["(a|ab)*c"]],
    "exclude": ["query", None, {"a": 1}, ["*"], [["a"]], ["(" * 9999]],
    "calibration_memory": ["tape", None, 1, {}],
    "seed": ["abc", float("nan"), [1], -1, 2**32, HUGE, None, True, 1.0],
    "max_sweeps": [0, -1, 1e3, True, HUGE],
    "refinement_steps": [0, "40", None, 10**9],
    "refine_steps": [-1, 1.5, "60", None, True, 10**9],
    "embedding_rank": [0, -1, 2.5, True, "64", HUGE, [], float("nan")],
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_value_is_named(name: str) -> None:
    for value in BAD[name]:
        size = {} if name.startswith("target_") or name == "rank" else {"target_params_ratio": 0.5}
        started = time.process_time()
        with pytest.raises(ValueError, match=name) as caught:
            HeatConfig(**{**size, name: value})
        assert time.process_time() - started < 1
        message = str(caught.value)
        assert "\n" not in message
        assert len(message) < 400


def test_together_they_may_be_too_much() -> None:
    with pytest.raises(ValueError, match=r"batch_size × sequence_length must be a whole number from 1 to 262,144, got 8388608"):
        HeatConfig(target_params_ratio=0.5, batch_size=4096, sequence_length=2048)
    assert HeatConfig(target_params_ratio=0.5, batch_size=512, sequence_length=512).tokens == 2**18


def test_what_other_libraries_call_a_number_is_one(tmp_path: Path) -> None:
    config = HeatConfig(
        target_params_ratio=numpy.float32(0.5),
        seed=numpy.int64(3),
        match_variance=numpy.bool_(True),
        batch_size=numpy.int32(2),
        shape={"24x24": TensorShape((24,), (24,)), "48x24": (48, 24), "24x48": "24:48"},
        cost_table=None,
        modules=("query", "key", "dense"),
    )
    assert (config.target_params_ratio, config.seed, config.match_variance, config.batch_size) == (0.5, 3, True, 2)
    assert (config.shape, config.modules) == (
        {"24x24": [[24], [24]], "48x24": [48, 24], "24x48": "24:48"},
        ["query", "key", "dense"],
    )
    assert json.loads(json.dumps(config.to_dict(), allow_nan=False)) == config.to_dict()
    HeatCompressor(small_model("bert")).compress(config, save_directory=tmp_path / "out")
    assert str(HeatConfig(target_params_ratio=0.5, cost_table=Path("a/b")).cost_table) == "a/b"


@pytest.mark.parametrize(
    "pattern",
    [
        "query", r"^bert\.encoder\.layer\.\d+\.", ".*layer.*attention.*self.*", r"layer\.(0|1|1[01])\.", "(query|key|value)$",
        "[a-z_]+[0-9]?", r"(?i)DENSE", r"(?<!key)$", r"\d{1,3}",
    ],
)  # fmt: skip
def test_ordinary_expressions_are_taken(pattern: str) -> None:
    assert HeatConfig(target_params_ratio=0.5, modules=[pattern]).modules == [pattern]


GOOD: dict[str, list[Any]] = {
    "decomposition": ["low_rank", "cp", "tucker", "ttm", "monarch", "mixed"],
    "rank_search": ["uniform", "sensitivity", "tensorly", "manual", "random"],
    "target_params_ratio": [0.3, 0.5, numpy.float64(0.9), [0.4, 0.6]],
    "target_edp_ratio": [0.7, 0.95],
    "target_latency_ratio": [0.5],
    "target_latency": [1e-4, 1],
    "rank": [1, 4, 24, [4], [2, 3, 4], {"24x24": 3, "48x24": 4, "24x48": 5}, {"24x24": 3}],
    "shape": ["24:24", [[24], [24]], {"24x24": "24:4x6"}, {"24x24": [4, 6, 24], "48x24": "48:24"}, {"9x9": "9:9"}],
    "cost_table": ["nowhere.parquet"],
    "activation_aware": [True, False],
    "loss_aware": [True, False],
    "match_variance": [True],
    "execution": ["contract", "reconstruct"],
    "sequence_length": [8, 64],
    "batch_size": [2],
    "accelerator": [None, "simba-l", "nothing"],
    "runtime": ["torch"],
    "precision": ["float32"],
    "modules": [["query"], [r"layer\.0\."], ["nothing"]],
    "exclude": [["key"], ["dense$"], ["."]],
    "calibration_memory": ["layer", "disk"],
    "seed": [0, 7],
    "max_sweeps": [1, 3],
    "refinement_steps": [1],
}


def _drawn(rng: random.Random) -> dict[str, Any]:
    """A size, and up to four fields, each with a good value three times out of four."""
    names = [rng.choice(["target_params_ratio", "target_edp_ratio", "rank"]), *rng.sample(list(GOOD), rng.randrange(5))]
    return {name: rng.choice(GOOD[name] if rng.random() < 0.75 else BAD[name]) for name in names}


def random_configurations(folder: Path, count: int) -> Counter[str]:
    """Compress with random configurations, and count what came of it.

    Right is what keeps its target, is finite and is saved; anything but that or a named error of one line fails, and so does
    one that changes the model, leaves files, or takes long.
    """
    rng, counts = random.Random(0), Counter[str]()
    dense = small_model("bert").state_dict()
    for number in range(count):
        options, model, target = _drawn(rng), small_model("bert"), folder / str(number)
        calibration = rng.choice([None, BATCHES])
        started = time.process_time()
        try:
            config = HeatConfig(**{"max_sweeps": 3, "refinement_steps": 2, "refine_steps": 2, **options})
            report = HeatCompressor(model).compress(config, calibration, target)
        except (ValueError, FileNotFoundError) as error:  # a table or an accelerator that is not there
            assert "\n" not in str(error), options
            assert not factorized_layers(model), options
            assert all(torch.equal(value, dense[name]) for name, value in model.state_dict().items()), options
            assert not list(folder.iterdir()), options
            counts["refused"] += 1
        else:
            json.loads((target / "heat_report.json").read_text(), parse_constant=pytest.fail)
            config = json.loads((target / "config.json").read_text(), parse_constant=pytest.fail)
            settings = config["quantization_config"]["tensors"]
            assert set(settings) == set(factorized_layers(model)), options
            assert all(parameter.isfinite().all() for parameter in model.parameters()), options
            ratio = options.get("target_params_ratio")
            assert ratio is None or report.params_ratio <= ratio, options
            counts["compressed"] += 1
            for file in sorted(target.rglob("*"), reverse=True):
                file.unlink() if file.is_file() else file.rmdir()
            target.rmdir()
        assert time.process_time() - started < 60, options
    return counts


def test_a_few_random_configurations(tmp_path: Path) -> None:
    counts = random_configurations(tmp_path, 60)
    assert min(counts["refused"], counts["compressed"]) > 5


@pytest.mark.slow
def test_random_configurations(tmp_path: Path) -> None:
    counts = random_configurations(tmp_path, 3000)
    require_told(
        "of {total} random configurations {compressed} were compressed right and {refused} refused in one line", counts
    )
