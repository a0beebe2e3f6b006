"""Compress a checkpoint twice as large as the memory there is, by the command line, within a memory control group of Linux.

The checkpoint's weights are random: what it answers does not matter here, and no score is stated. Each way is a process of its
own in a group whose limit is half of the checkpoint's bytes. What the system keeps of files counts in it, and can go back.
Needs root, and control groups of version 1 or 2 that can be written.

    python -m benchmarks.streamed --data DATA --classifier FOLDER --work FOLDER --output benchmarks/results/streamed.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.provenance import captioned, provenance, source_line
from recipes.evidence import write_json

GROUPS = Path("/sys/fs/cgroup")
OPTIONS = ["--rank-search", "sensitivity", "--target-edp-ratio", "0.1", "--widths", "--sequence-length", "128"]
OPTIONS += ["--refine-steps", "10"]
WAYS = {"model": "in memory", "disk": "`--calibration-memory disk`"}
KILLED = -9
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "100000"}  # of glibc: what is freed goes back to the system, and leaves no holes


def make_checkpoint(folder: Path, blocks: int, hidden: int, tokenizer: str) -> int:
    """A BERT with random weights, without a head; returns its bytes."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        words = AutoTokenizer.from_pretrained(tokenizer)
        sizes = {"hidden_size": hidden, "intermediate_size": 4 * hidden, "num_attention_heads": hidden // 64}
        model = BertModel(BertConfig(vocab_size=len(words), num_hidden_layers=blocks, **sizes))
        model.save_pretrained(folder, max_shard_size="500MB")
        words.save_pretrained(folder)
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


@contextmanager
def limited(limit: int) -> Iterator[Path]:
    """A control group with so many bytes of memory."""
    old = (GROUPS / "memory").is_dir()
    group = (GROUPS / "memory" if old else GROUPS) / f"heat-hf-{os.getpid()}"
    group.mkdir()
    (group / ("memory.limit_in_bytes" if old else "memory.max")).write_text(str(limit))
    try:
        yield group
    finally:
        group.rmdir()


def anonymous(group: Path) -> int:
    """Bytes of a group's processes that are not pages of files."""
    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return int(stat.get("rss", stat.get("anon", "0")))


def run(checkpoint: Path, sentences: Path, rows: int, way: str, limit: int, work: Path) -> dict[str, Any]:
    """Compress in one way: whether it ended, minutes, and the most bytes that were not pages of files."""
    command = [sys.executable, "-m", "heat_hf.cli", "compress", str(checkpoint), *OPTIONS, "--calibration-memory", way]
    command += ["--calibration-file", str(sentences), "--calibration-rows", str(rows)]
    command += ["--output", str(work / f"compressed-{way}"), "--overwrite"]
    most, ended = 0, threading.Event()
    with limited(limit) as group:

        def watch() -> None:
            nonlocal most
            while not ended.wait(0.2):
                most = max(most, anonymous(group))

        watcher = threading.Thread(target=watch)
        watcher.start()
        started = time.perf_counter()
        done = subprocess.run(
            command,
            env={**os.environ, "TMPDIR": str(work), **MALLOC},
            preexec_fn=lambda: (group / "cgroup.procs").write_text(str(os.getpid())),
            check=False,
        )
        ended.set()
        watcher.join()
    if done.returncode not in (0, KILLED):
        raise RuntimeError(f"{command} ended with {done.returncode}")
    minutes = (time.perf_counter() - started) / 60
    return {"way": way, "killed": done.returncode == KILLED, "minutes": minutes, "anonymous": most}


def table(data: dict[str, Any]) -> str:
    """A row for each way."""
    lines = ["| moments | ended | minutes | most memory, pages of files apart, GB |", "|---|---|---:|---:|"]
    for row in data["rows"]:
        end = "killed: out of memory" if row["killed"] else "compressed"
        lines.append(f"| {WAYS[row['way']]} | {end} | {row['minutes']:.1f} | {row['anonymous'] / 1e9:.2f} |")
    caption = (
        f"{data['blocks']} blocks of width {data['hidden']:,}, random: {data['bytes'] / 1e9:.2f} GB; a group of "
        f"{data['limit'] / 1e9:.2f} GB of memory. {data['calibration_rows']} calibration sentences; ranks and widths at 10×."
    )
    return captioned(lines, caption, source_line(data))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with text/train.parquet")
    parser.add_argument("--classifier", required=True, help="checkpoint whose tokenizer is used")
    parser.add_argument("--work", type=Path, required=True, help="folder on a disk, for the checkpoint and what is made of it")
    parser.add_argument("--blocks", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--limit", type=float, default=0.5, help="memory, as a part of the checkpoint (default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    checkpoint = args.work / "checkpoint"
    size = make_checkpoint(checkpoint, args.blocks, args.hidden, args.classifier)
    command = "python -m benchmarks.streamed --data DATA --classifier FOLDER --work FOLDER --output FILE"
    data = json.loads(args.output.read_text()) if args.output.exists() else {"rows": []}
    data |= {
        **provenance(command, "torch", "transformers"),
        "bytes": size,
        "limit": int(size * args.limit),
        "blocks": args.blocks,
    }
    data |= {"hidden": args.hidden, "calibration_rows": args.rows}
    for way in WAYS:
        if way not in [row["way"] for row in data["rows"]]:
            data["rows"].append(run(checkpoint, args.data / "text" / "train.parquet", args.rows, way, data["limit"], args.work))
            write_json(args.output, data)
            print(data["rows"][-1], flush=True)
    print(table(data))


if __name__ == "__main__":
    main()
