"""A classifier behind HTTP in a few lines, for `benchmarks.serving`: a JSON list of texts in, a JSON list of labels out.

MODEL=FOLDER THREADS=N uvicorn --factory benchmarks.serving_app:create
"""

from __future__ import annotations

import os

import torch
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import heat_hf  # noqa: F401
from heat_hf.integrations.exported import load_exported


def create() -> Starlette:
    """The application; the folder has a model of Transformers, or what `heat-hf export` wrote."""
    folder, threads = os.environ["MODEL"], int(os.environ["THREADS"])
    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = load_exported(folder, threads) or AutoModelForSequenceClassification.from_pretrained(folder).eval()

    async def label(request: Request) -> JSONResponse:
        inputs = tokenizer(await request.json(), padding=True, truncation=True, max_length=128, return_tensors="pt")
        with torch.inference_mode():
            return JSONResponse(model(**inputs).logits.argmax(-1).tolist())

    return Starlette(routes=[Route("/", label, methods=["POST"])])
