"""What users of a server see: rows a second on texts of mixed lengths, and the latency of single requests under a steady load.

Dense and compressed, in PyTorch and as exported, each in a process of its own behind uvicorn on loopback (pip install starlette
uvicorn). Rows a second are of batches of 32: in the order in which they come, and sorted by length, so that little is padded.

    python -m benchmarks.serving --dense FOLDER --compressed FOLDER --texts FILE --output benchmarks/results/serving.json
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import transformers

from benchmarks.provenance import provenance
from heat_hf.encoders.linears import model_class_of
from heat_hf.encoders.rows import load_rows
from heat_hf.integrations.exported import EXPORTED
from heat_hf.integrations.exporting import written
from recipes.evidence import write_json

BATCH = 32
RATE, SECONDS = 40, 15  # single requests a second, and for how long
CLIENTS = 8  # requests under way at most
PATIENCE = 120  # seconds in which a server must answer
WAYS = (("torch", False), ("onnxruntime", True), ("openvino", True))


class Client:
    """One connection, kept open."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)

    def ask(self, texts: Sequence[str]) -> list[int]:
        """Labels of texts."""
        self.connection.request("POST", "/", json.dumps(texts), {"Content-Type": "application/json"})
        answer = self.connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise OSError(f"the server answers {answer.status}")
        return json.loads(content)  # type: ignore[no-any-return]


@contextmanager
def served(folder: Path, threads: int) -> Iterator[tuple[int, float]]:
    """A server's port, and the seconds from its start to its first answer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = [sys.executable, "-m", "uvicorn", "--factory", "benchmarks.serving_app:create"]
    line += ["--port", str(port), "--log-level", "error"]
    environment = {**os.environ, "MODEL": str(folder), "THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    started = time.perf_counter()
    process = subprocess.Popen(line, env=environment)
    try:
        while True:
            try:
                Client(port).ask(["Is anybody there?"])
                break
            except ConnectionError as error:
                if process.poll() is not None or time.perf_counter() - started > PATIENCE:
                    raise OSError(f"no server of {folder} came up") from error
                time.sleep(0.02)
        yield port, time.perf_counter() - started
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def steady(port: int, texts: Sequence[str]) -> list[float]:
    """Seconds from when each request was due to its answer, at `RATE` requests a second."""
    clients = [Client(port) for _ in range(CLIENTS)]
    start = time.perf_counter() + 0.1

    def run(own: int) -> list[float]:
        waited = []
        for number in range(own, RATE * SECONDS, CLIENTS):
            due = start + number / RATE
            time.sleep(max(0.0, due - time.perf_counter()))
            clients[own].ask([texts[number % len(texts)]])
            waited.append(time.perf_counter() - due)
        return waited

    with ThreadPoolExecutor(CLIENTS) as pool:
        return [seconds for found in pool.map(run, range(CLIENTS)) for seconds in found]


def rows_a_second(port: int, texts: Sequence[str]) -> float:
    """Of batches one after the other."""
    client, start = Client(port), time.perf_counter()
    for first in range(0, len(texts), BATCH):
        client.ask(texts[first : first + BATCH])
    return len(texts) / (time.perf_counter() - start)


def figures(folder: Path, threads: int, texts: Sequence[str]) -> dict[str, float]:
    """All that is measured of one server."""
    with served(folder, threads) as (port, cold):
        rows_a_second(port, texts[: 4 * BATCH])  # warm-up
        mixed, bucketed = rows_a_second(port, texts), rows_a_second(port, sorted(texts, key=len))
        waited = statistics.quantiles(steady(port, texts), n=100, method="inclusive")
    return {"cold": cold, "mixed": mixed, "sorted": bucketed, "p50": waited[49], "p99": waited[98]}


def placed(folder: str, scratch: Path, texts: Sequence[str]) -> dict[str, Path]:
    """A model in every one of `WAYS`."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = model_class_of(transformers.AutoConfig.from_pretrained(folder)).from_pretrained(folder).eval()
    calibration = [dict(tokenizer([text], return_tensors="pt", truncation=True, max_length=128)) for text in texts[:200]]
    places = {}
    with written(model, tokenizer) as graph:
        for runtime, int8 in WAYS:
            name = f"{runtime} {'int8' if int8 else 'float32'}"
            places[name] = Path(folder).absolute()
            if runtime in EXPORTED:
                places[name] = scratch / name.replace(" ", "-")
                graph.place(EXPORTED[runtime], places[name], int8, calibration)
    return places


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dense", required=True)
    parser.add_argument("--compressed", required=True)
    parser.add_argument("--name", default="20×, distilled", help="of the compressed one in the table")
    parser.add_argument("--texts", type=Path, required=True, help="file with a column of sentences")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, os.cpu_count() or 1])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/serving.json"))
    args = parser.parse_args()
    texts, rows = load_rows(args.texts)["sentence"], []
    with tempfile.TemporaryDirectory() as scratch:
        models = {"dense": args.dense, args.name: args.compressed}
        places = {name: placed(folder, Path(scratch) / str(k), texts) for k, (name, folder) in enumerate(models.items())}
        print("timing", flush=True)
        for threads in args.threads:
            for name, own in places.items():
                for way, place in own.items():
                    rows.append({"model": name, "runs in": way, "threads": threads, **figures(place, threads, texts)})
                    print(rows[-1], flush=True)
    command = "python -m benchmarks.serving --dense FOLDER --compressed FOLDER --texts FILE --output FILE"
    packages = ("torch", "onnxruntime", "openvino", "starlette", "uvicorn")
    write_json(args.output, {**provenance(command, *packages), "rate": RATE, "seconds": SECONDS, "rows": rows})


if __name__ == "__main__":
    main()
