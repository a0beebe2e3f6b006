"""Ways in which files and saved folders are damaged, or made hostile: by a seed, never at the same place twice."""

from __future__ import annotations

import gzip
import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Damage = Callable[[Path, random.Random], None]
MARK = "EXECUTED"  # a file that hostile code writes where it runs
CODE = f"""
import pathlib, transformers
pathlib.Path({MARK!r}).touch()

class Own(transformers.BertModel):
    pass
"""


def damaged(content: bytes, rng: random.Random) -> bytes:
    """One of the ways in which the bytes of a file are damaged."""
    place = rng.randrange(len(content))
    return rng.choice([
        content[:place],
        content[place:],
        content[:place] + rng.randbytes(rng.randrange(1, 9)) + content[place:],
        content[:place] + b"\0" * 64 + content[place + 64 :],
        content[:place] + rng.choice([b'"', b",", b"\n", b"{", b"]", b"\xff\xfe", b"\r", b"\t,,"]) + content[place:],
        content.decode("utf-8", "replace").encode("utf-16"),
        gzip.compress(content),
        rng.randbytes(rng.randrange(200)),
        content * 2,
        b"",
    ])  # fmt: skip


def _put(file: Path, content: bytes) -> None:
    """In place of what was there; never into a file that other folders share."""
    file.unlink()
    file.write_bytes(content)


def _bytes(file: Path, rng: random.Random) -> None:
    _put(file, damaged(file.read_bytes(), rng))


def _fifo(file: Path, _: random.Random) -> None:
    file.unlink()
    os.mkfifo(file)


def _folder(file: Path, _: random.Random) -> None:
    file.unlink()
    file.mkdir()
    (file / "inside").touch()


def _link(file: Path, rng: random.Random) -> None:
    file.unlink()
    file.symlink_to(rng.choice(["/dev/zero", "/dev/random", "nowhere", file.name, "/", "../.."]))


def _mode(file: Path, _: random.Random) -> None:
    _put(file, file.read_bytes())
    file.chmod(0)


def _gone(file: Path, _: random.Random) -> None:
    file.unlink()


FILES: dict[str, Damage] = {
    "bytes": _bytes, "FIFO": _fifo, "folder": _folder, "link": _link, "mode": _mode, "gone": _gone,
}  # fmt: skip

# What no file of ours holds, by the kind of what stands there.
WRONG = [None, True, -1, 0, 2.5, 10**400, 10**12, float("nan"), float("inf"), -float("inf"), "", "text", "../x", [], {}, [[]],
         [None], {"a": 1}, ["a", 1], "x" * 100_000, [0] * 1000]  # fmt: skip


def _places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value inside a value."""
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [place for key, value in inner for place in ((*path, key), *_places(value, (*path, key)))]


def _holder(content: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        content = content[key]
    return content


def _kind(value: Any) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 10**6
    return "number" if number else type(value).__name__


def changed(file: Path, change: Callable[[Any], object]) -> None:
    """Write a JSON file again, with what a function does to its content."""
    content = json.loads(file.read_text())
    change(content)
    _put(file, json.dumps(content, indent=2).encode())


def _wrong(file: Path, rng: random.Random) -> None:
    """A value of another kind, somewhere."""

    def change(content: Any) -> None:
        path = rng.choice(_places(content))
        holder = _holder(content, path)
        holder[path[-1]] = rng.choice([value for value in WRONG if _kind(value) != _kind(holder[path[-1]])])

    changed(file, change)


def _deep(file: Path, rng: random.Random) -> None:
    depth = rng.choice([2_000, 100_000])
    text = file.read_text().rstrip()
    nested = "[" * depth + "]" * depth
    _put(file, (nested if rng.random() < 0.5 else f'{text[:-1]}, "deep": {nested}{text[-1]}').encode())


def _huge(file: Path, rng: random.Random) -> None:
    text = file.read_text().rstrip()
    what = json.dumps("x" * 80_000_000) if rng.random() < 0.5 else "[" + "0," * 40_000_000 + "0]"
    _put(file, f'{text[:-1]}, "huge": {what}{text[-1]}'.encode() if text[-1] == "}" else what.encode())


def _top(file: Path, rng: random.Random) -> None:
    _put(file, rng.choice([b"null", b"3", b'"text"', b"[]", b"{}", b"[[]]", b"[1]", b"true", b"NaN", b'{"a": 1}', b"[{}]"]))


JSON: dict[str, Damage] = {"wrong value": _wrong, "deep": _deep, "huge": _huge, "another top": _top}


def _setting(change: Callable[[dict[str, Any], random.Random], Any]) -> Damage:
    """Of the quantization_config."""

    def damage(folder: Path, rng: random.Random) -> None:
        changed(folder / "config.json", lambda content: change(content["quantization_config"], rng))

    return damage


def _one(quantization: dict[str, Any], rng: random.Random) -> tuple[str, dict[str, Any]]:
    name = rng.choice(list(quantization["tensors"]))
    return name, quantization["tensors"][name]


def _renamed(quantization: dict[str, Any], rng: random.Random) -> None:
    name, setting = _one(quantization, rng)
    del quantization["tensors"][name]
    quantization["tensors"][name[:-1]] = setting


def _hostile(folder: Path, rng: random.Random) -> None:
    """Code, and a pickle that runs some when it is read."""
    (folder / "own.py").write_text(CODE)
    classes = {"AutoConfig": "own.Own", "AutoModel": "own.Own", "AutoModelForSequenceClassification": "own.Own"}
    kind = rng.choice(["own", "bert", "../own"])
    changed(folder / "config.json", lambda content: content.update(auto_map=classes, model_type=kind, architectures=["Own"]))


def _pickled(folder: Path, rng: random.Random) -> None:
    for file in weights(folder) if rng.random() < 0.5 else ():
        file.unlink()
    payload = b"cpathlib\nPath\n(V" + MARK.encode() + b"\ntR(dbctouch\n)R."
    for name in ("pytorch_model.bin", "heat_model.bin", "training_args.bin"):
        (folder / name).write_bytes(payload)
    wanted = rng.choice(["pytorch_model.bin", "../x.safetensors", "heat_model.bin"])
    _setting(lambda q, _: q.update(weights_file=wanted))(folder, rng)


def _adapter(folder: Path, rng: random.Random) -> None:
    lora = {
        "peft_type": "LORA",
        "base_model_name_or_path": rng.choice([str(folder), "/dev", "nowhere", 5]),
        "target_modules": ["x"],
    }
    contents = [json.dumps(lora), "[" * 100_000, "null", "[]", "", '{"peft_type": 7}']
    (folder / "adapter_config.json").write_text(rng.choice(contents))


def _gone_settings(quantization: dict[str, Any], rng: random.Random) -> None:
    del quantization["tensors"][_one(quantization, rng)[0]]


SETTINGS: dict[str, Damage] = {
    "a version of the future": _setting(lambda q, rng: q.update(heat_version=rng.choice(["99.0", "9" * 400, "new", 7]))),
    "another method": _setting(lambda q, rng: q.update(quant_method=rng.choice(["gptq", "bitsandbytes", "heat2", 3, None]))),
    "an unknown option": _setting(lambda q, rng: q.update({rng.choice(["new", "x" * 9999, "a\nb"]): 1})),
    "many settings": _setting(lambda q, rng: q["tensors"].update({f"x.{i}": _one(q, rng)[1] for i in range(100_000)})),
    "many modes": _setting(lambda q, rng: _one(q, rng)[1].update(shape=[[24, *[1] * 9999], [24]])),
    "a huge rank": _setting(lambda q, rng: _one(q, rng)[1].update(rank=[10**rng.choice([2, 9, 400])])),
    "another format": _setting(lambda q, rng: _one(q, rng)[1].update(format=rng.choice(["cp", "ttm", "svd", "", []]))),
    "a setting is missing": _setting(_gone_settings),
    "a setting of another layer": _setting(_renamed),
    "many layers": lambda folder, rng: changed(
        folder / "config.json", lambda c: c.update(num_hidden_layers=rng.choice([1, 3, 10**5, 10**9, -1, 0]))
    ),
    "extents of another model": lambda folder, rng: changed(
        folder / "config.json",
        lambda c: c.update({rng.choice(["hidden_size", "intermediate_size", "vocab_size", "num_attention_heads",
                                        "max_position_embeddings", "type_vocab_size"]): rng.choice([7, 48, 10**7, 10**12])}),
    ),
    "hostile code": _hostile,
    "pickles": _pickled,
    "an adapter": _adapter,
}  # fmt: skip


def weights(folder: Path) -> list[Path]:
    """The weights files of a folder."""
    return sorted(folder.glob("*model*.safetensors"))


def _header(change: Callable[[bytearray, random.Random], None]) -> Damage:
    def damage(file: Path, rng: random.Random) -> None:
        content = file.read_bytes()
        end = 8 + struct.unpack("<Q", content[:8])[0]
        header = bytearray(content[:end])
        change(header, rng)
        _put(file, bytes(header) + content[end:])

    return damage


def _flip(content: bytearray, rng: random.Random) -> None:
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def _long(content: bytearray, rng: random.Random) -> None:
    content[:8] = struct.pack("<Q", rng.choice([0, 1, 2**31, 2**63, 2**64 - 1, 100_000_000]))


def _flipped(file: Path, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    _flip(content, rng)
    _put(file, bytes(content))


def _zeros(file: Path, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    place = rng.randrange(len(content) // 2, len(content))
    content[place : place + 4096] = bytes(len(content[place : place + 4096]))
    _put(file, bytes(content))


def _tensors(change: Callable[[dict[str, torch.Tensor], str, random.Random], Any]) -> Damage:
    def damage(file: Path, rng: random.Random) -> None:
        tensors = load_file(file)
        change(tensors, rng.choice(sorted(tensors)), rng)
        _put(file, b"")
        save_file(tensors, file, {"format": "pt"})

    return damage


def _value(tensors: dict[str, torch.Tensor], name: str, rng: random.Random) -> None:
    flat = tensors[name].reshape(-1)
    flat[rng.randrange(len(flat))] = rng.choice([float("nan"), float("inf"), -float("inf")])


def _extents(tensors: dict[str, torch.Tensor], name: str, rng: random.Random) -> None:
    one = tensors[name]
    tensors[name] = rng.choice(
        [one[:-1], one[..., :1], one[None], one.reshape(-1), one[:0], torch.cat([one, one])]
    ).contiguous()


def _swapped(tensors: dict[str, torch.Tensor], name: str, rng: random.Random) -> None:
    other = rng.choice([key for key in sorted(tensors) if tensors[key].shape != tensors[name].shape] or [name])
    tensors[name], tensors[other] = tensors[other], tensors[name]


def _type(tensors: dict[str, torch.Tensor], name: str, rng: random.Random) -> None:
    one = tensors[name]
    tensors[name] = rng.choice([one.view(torch.int32), one.bool(), one.to(torch.complex64), one.view(torch.uint32)])


def without_checksum(folder: Path) -> None:
    """Take away what notices any change of the weights, as someone who changes them on purpose would."""
    if (folder / "config.json").is_file():
        changed(folder / "config.json", lambda content: content["quantization_config"].pop("checksum"))


# Of one weights file. The checksum alone can notice the first; the others are noticed without it, too.
TOLD_BY_CHECKSUM: dict[str, Damage] = {"a bit": _flipped, "zeros": _zeros}
WEIGHTS: dict[str, Damage] = {
    "a bit of the header": _header(_flip),
    "the header's length": _header(_long),
    "a tensor is missing": _tensors(lambda tensors, name, _: tensors.pop(name)),
    "a tensor is renamed": _tensors(lambda tensors, name, _: tensors.update({name[1:]: tensors.pop(name)})),
    "NaN or infinity": _tensors(_value),
    "other extents": _tensors(_extents),
    "two tensors swapped": _tensors(_swapped),
    "another type": _tensors(_type),
}


def _index(change: Callable[[dict[str, str], random.Random], Any]) -> Damage:
    def damage(folder: Path, rng: random.Random) -> None:
        for file in folder.glob("*.index.json"):
            changed(file, lambda content: change(content["weight_map"], rng))

    return damage


def _climbs(shards: dict[str, str], rng: random.Random) -> None:
    shards[rng.choice(list(shards))] = rng.choice(
        ["../x.safetensors", "/etc/passwd", "/dev/zero", "a/../../x", "config.json", ""]
    )


def _twice(folder: Path, rng: random.Random) -> None:
    """A shard in place of another, and beside it."""
    one, other = rng.choice(weights(folder)), rng.choice(weights(folder))
    _put(other, one.read_bytes())


SHARDS: dict[str, Damage] = {
    "shards that climb": _index(_climbs),
    "a tensor is not in the index": _index(lambda shards, rng: shards.pop(rng.choice(list(shards)))),
    "a tensor is said to be elsewhere": _index(
        lambda shards, rng: shards.update({rng.choice(list(shards)): rng.choice(list(shards.values()))})
    ),
    "many shards": _index(lambda shards, _: shards.update({f"x{i}": f"x{i}.safetensors" for i in range(100_000)})),
    "a shard twice": _twice,
}
