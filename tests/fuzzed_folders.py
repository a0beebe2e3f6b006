"""Saved folders, damaged by seeds, each loaded and given to the command line in a process of its own.

    python tests/fuzzed_folders.py PLACE FIRST LAST

prints two lines of JSON for every seed: layout, damages, what was asked, and what came of it. "right" is the answer of the
sound folder, "refused" one named error of one line, and "another" that of a folder that is sound and not the same, where
nothing says what it was; anything else is a finding.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import transformers
from damages import FILES, JSON, MARK, SETTINGS, SHARDS, TOLD_BY_CHECKSUM, WEIGHTS, weights, without_checksum

import heat_hf
from heat_hf.cli import main

SECONDS, MEMORY = 30, 512 * 2**20  # of the processor; on a busy machine a clock shows more
WORDS = [f"w{number}" for number in range(56)]
SMALL = {"vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
         "max_position_embeddings": 64}  # fmt: skip
# What is read as something else where it is damaged and still whole: nothing says what it was.
UNSIGNED = ("/tokenizer.json", "/tokenizer_config.json", "2_Dense/model.safetensors")
OTHER_MODELS = ("a setting is missing", "many layers")  # where config.json alone is read


def tokenizer() -> Any:
    """Words w0 to w55."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["<s>", "<pad>", "</s>", "<unk>", *WORDS]
    raw = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    special = {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, model_max_length=64, model_input_names=["input_ids", "attention_mask"], **special
    )


def _dense(folder: Path, head: bool) -> None:
    torch.manual_seed(0)
    loader = transformers.AutoModelForSequenceClassification if head else transformers.AutoModel
    model = loader.from_config(transformers.BertConfig(**SMALL))
    with torch.no_grad():  # larger than trained ones begin, so that outputs differ
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def _sentences(folder: Path) -> None:
    """The modules of sentence-transformers: another pooling than without them, a Dense and a Normalize."""
    from safetensors.torch import save_file

    kind = "sentence_transformers.models"
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"), ("3_Normalize", "Normalize")]
    entries = [{"idx": i, "name": str(i), "path": path, "type": f"{kind}.{name}"} for i, (path, name) in enumerate(modules)]
    for path, _ in modules[1:3]:
        (folder / path).mkdir()
    pooling = {"word_embedding_dimension": 24, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    dense = {"in_features": 24, "out_features": 8, "bias": True, "activation_function": "torch.nn.modules.activation.Tanh"}
    save_file({"linear.weight": torch.randn(8, 24), "linear.bias": torch.randn(8)}, folder / "2_Dense" / "model.safetensors")
    files = {"modules.json": entries, "1_Pooling/config.json": pooling, "2_Dense/config.json": dense,
             "sentence_bert_config.json": {"max_seq_length": 64, "do_lower_case": False},
             "config_sentence_transformers.json": {"prompts": {}, "similarity_fn_name": "cosine"}}  # fmt: skip
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2))


def sound_folders(place: Path) -> dict[str, Path]:
    """Each kind of folder that heat_hf saves."""
    config = heat_hf.HeatConfig(target_params_ratio=0.5, shape=None, accelerator="simba-l")
    dense, made = place / "dense", {}
    _dense(dense / "head", head=True)
    _dense(dense / "encoder", head=False)
    _sentences(dense / "encoder")
    made["single"], made["sharded"] = place / "single", place / "sharded"
    made["training"] = place / "checkpoint-7"
    heat_hf.HeatCompressor.from_pretrained(dense / "head").compress(config, save_directory=made["single"])
    encoder = heat_hf.HeatCompressor.from_pretrained(dense / "encoder")
    encoder.compress(config, save_directory=made["sharded"], max_shard_size="10KB")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(made["single"])
    model.save_pretrained(made["training"])
    tokenizer().save_pretrained(made["training"])
    state = {"log_history": [{"loss": 0.5, "step": step, "stage": 1} for step in range(3)], "global_step": 7}
    (made["training"] / "trainer_state.json").write_text(json.dumps(state))
    shutil.copy(made["training"] / "trainer_state.json", made["single"])
    words = [" ".join(random.Random(i).choices(WORDS, k=5)) for i in range(12)]
    rows = [{"sentence": a, "sentence1": a, "sentence2": b, "label": i % 2, "score": i / 6}
            for i, (a, b) in enumerate(zip(words[::2], words[1::2], strict=True))]  # fmt: skip
    (place / "rows.json").write_text(json.dumps(rows))
    return made


def _load(folder: Path, _: Path) -> Any:
    head = (folder / "modules.json").exists() or folder.name == "sharded"
    loader = transformers.AutoModel if head else transformers.AutoModelForSequenceClassification
    model = loader.from_pretrained(folder)
    ids = torch.arange(3, 27).reshape(2, 12)
    with torch.no_grad():
        return model(ids)[0].tolist()


class _Hub:
    """Takes what is pushed."""

    def __init__(self, **_: Any) -> None:
        pass

    def create_repo(self, name: str, **_: Any) -> Any:
        return type("Repo", (), {"repo_id": name})

    def upload_folder(self, folder_path: Path, **_: Any) -> Any:
        return type("Commit", (), {"commit_url": str(folder_path.name), "oid": "", "pr_url": None})


def _command(*line: str) -> Any:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(line)
    if code == 2:
        lines = [text for text in err.getvalue().splitlines() if text.startswith("heat-hf: ")]
        assert not out.getvalue() and len(lines) == 1 and err.getvalue().endswith(lines[0] + "\n"), (out, err.getvalue())
        raise ValueError(lines[0])
    assert code == 0, code
    return out.getvalue()


def _page(folder: Path, scratch: Path) -> Any:
    _command("report", str(folder), "--output", str(scratch / "page"))
    return (scratch / "page" / "report.html").read_text().replace(str(folder), "")


def _evaluate(folder: Path, scratch: Path) -> Any:
    task = "sentence-similarity" if folder.name == "sharded" else "text-classification"
    return _command("evaluate", str(folder), "--task", task, "--data", str(scratch / "rows.json"), "--json").replace(
        str(folder), ""
    )


def _export(folder: Path, scratch: Path) -> Any:
    _command("export", str(folder), "--output", str(scratch / "onnx"))
    model = heat_hf.OnnxModel(scratch / "onnx")
    return [
        model(torch.arange(3, 27).reshape(2, 12))[name].tolist()
        for name in ("logits", "last_hidden_state")
        if name in {output.name for output in model.session.get_outputs()}
    ]


ASKED: dict[str, Callable[[Path, Path], Any]] = {
    "load": _load,
    "report": lambda folder, _: _command("report", str(folder)).replace(str(folder), ""),
    "page": _page,
    "cost": lambda folder, _: _command("cost", str(folder)).replace(str(folder), ""),
    "evaluate": _evaluate,
    "push": lambda folder, _: _command("push", str(folder), "me/model"),
    "export": _export,
}
VERBS = ("report", "page", "cost", "evaluate", "push")


def _answer(asked: str, folder: Path, scratch: Path) -> dict[str, Any]:
    """What comes of one question, in this process."""
    if asked == "push":
        import huggingface_hub

        huggingface_hub.HfApi = _Hub
    os.chdir(scratch)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        answer: dict[str, Any] = {"right": ASKED[asked](folder, scratch)}
    except (ValueError, OSError) as error:
        one = "\n" not in str(error) and 0 < len(str(error)) < 1000
        answer = {"refused" if one else "long": f"{type(error).__name__}: {error}"}
    except BaseException:
        answer = {"raised": traceback.format_exc()[-3000:]}
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    if grown > MEMORY:
        answer = {"memory": f"{grown >> 20} MiB", **answer}
    if list(scratch.rglob(MARK)) or list(folder.rglob(MARK)):
        answer = {"executed": True}
    return answer


def ask(asked: str, folder: Path, scratch: Path) -> tuple[dict[str, Any], float]:
    """The same in a process of its own, which is ended where it waits or works for too long; and its seconds."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        sink = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(sink, number)
        resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34))
        with os.fdopen(writing, "w") as pipe:
            json.dump(_answer(asked, folder, scratch), pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text, deadline = "", time.monotonic() + 6 * SECONDS
        while select.select([pipe], [], [], max(0, deadline - time.monotonic()))[0]:
            part = os.read(pipe.fileno(), 2**20).decode()
            if not part:
                break
            text += part
    os.kill(child, signal.SIGKILL)
    used = os.wait4(child, 0)[2]
    seconds = used.ru_utime + used.ru_stime
    if time.monotonic() >= deadline or seconds > SECONDS:
        return {"slow": True}, seconds
    return (json.loads(text) if text else {"died": True}), seconds


def damage(folder: Path, rng: random.Random) -> str:
    """Damage a folder in one way, and say in which."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    if not files:
        return "nothing is left"
    where = [
        (FILES, files),
        (JSON, [path for path in files if path.suffix == ".json"]),
        (SETTINGS, [folder]),
        (WEIGHTS | TOLD_BY_CHECKSUM, weights(folder)),
        (SHARDS, [folder] if folder.name == "sharded" else []),
    ]
    table, targets = rng.choice([(table, targets) for table, targets in where if targets])
    name, target = rng.choice(list(table)), rng.choice(targets)
    try:
        table[name](target, rng)
        if name in WEIGHTS and rng.random() < 0.5:
            without_checksum(folder)
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        return f"{name} not: {type(error).__name__}"  # an earlier damage is in the way
    return f"{name}: {target.relative_to(folder.parent)}"


def _copy(sound: Path, folder: Path) -> None:
    shutil.copytree(sound, folder, copy_function=os.link)


def run(place: Path, first: int, last: int) -> None:
    """Print what comes of every seed."""
    sound = sound_folders(place)

    @functools.cache
    def right(layout: str, asked: str) -> dict[str, Any]:
        return _in_scratch(place, sound[layout], asked, lambda _: None)[0]

    for seed in range(first, last):
        rng = random.Random(seed)
        layout, state, told = rng.choice(list(sound)), rng.getrandbits(64), []
        for asked in ("load", "export" if seed % 25 == 0 else rng.choice(VERBS)):
            again = random.Random(state)  # the same damage for both questions
            told.clear()

            def hurt(folder: Path, rng: random.Random = again, told: list[str] = told) -> None:
                told += [damage(folder, rng) for _ in range(rng.choice([1, 1, 1, 2]))]

            answer, seconds = _in_scratch(place, sound[layout], asked, hurt)
            about = {"seed": seed, "layout": layout, "asked": asked, "damage": "; ".join(told), "seconds": round(seconds, 1)}
            print(json.dumps({**about, **_judged(asked, answer, right(layout, asked), told)}), flush=True)


def _judged(asked: str, answer: dict[str, Any], right: dict[str, Any], told: list[str]) -> dict[str, Any]:
    if "right" not in answer:
        return answer
    if answer == right:
        return {"right": True}
    another = any(text.endswith(UNSIGNED) or (asked == "cost" and text.startswith(OTHER_MODELS)) for text in told)
    return {"another": True} if another else {"wrong": str(answer["right"])[:300]}


def _in_scratch(place: Path, sound: Path, asked: str, hurt: Callable[[Path], None]) -> tuple[dict[str, Any], float]:
    scratch = place / "scratch"
    folder = scratch / sound.name
    scratch.mkdir()
    _copy(sound, folder)
    shutil.copy(place / "rows.json", scratch)
    hurt(folder)
    answer = ask(asked, folder, scratch)
    shutil.rmtree(scratch)
    return answer


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
