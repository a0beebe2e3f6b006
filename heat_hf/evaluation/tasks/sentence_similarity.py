"""Sentence encoders: how similar two sentences are, by their embeddings as the checkpoint serves and compares them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from heat_hf.evaluation.tasks.base import Columns, Second, Task, quoted

if TYPE_CHECKING:
    from torch import Tensor

    from heat_hf.evaluation.tasks.base import Model, Tokenizer

logger = logging.getLogger(__name__)


class SentenceSimilarity(Task):
    """Similarity of the embeddings of two sentences; trained on sentences alone, without labels."""

    name = "sentence-similarity"
    columns = ("sentence1", "sentence2", "score")
    metrics = ("spearman",)
    main = "spearman"
    fine_tunes = False

    def predict(self, model: Model, tokenizer: Tokenizer, first: Sequence[Any], second: Second) -> list[float]:
        """Similarity of each pair of sentences.

        Raises:
            ValueError: if there are no second sentences.
        """
        if second is None:
            raise ValueError("sentence similarity needs a second text column: the sentences to compare with")
        from heat_hf.encoders.served import served_by

        served = served_by(model)
        if served.pooled_by_default:
            logger.warning(
                "%s has no modules.json: embeddings are the means of tokens", getattr(model.config, "_name_or_path", "")
            )
        vectors = (sentence_embeddings(model, tokenizer, texts) for texts in (first, second))
        return served.similarities(*vectors).tolist()

    def encode(self, rows: Any, columns: Columns, tokenizer: Tokenizer, max_length: int, stride: int) -> Any:  # noqa: ANN401
        """Token ids of the sentences in either column."""
        texts = [name for name in columns[:2] if name]

        def tokenize(batch: dict[str, list[Any]]) -> dict[str, Any]:
            sentences = [sentence for name in texts for sentence in batch[name]]
            return dict(tokenizer(sentences, truncation=True, max_length=max_length))

        return rows.map(tokenize, batched=True, remove_columns=rows.column_names)

    def usage(self, name: str) -> str:
        """Loads the model with sentence-transformers."""
        imports = "import heat_hf\nfrom sentence_transformers import SentenceTransformer"
        return f"{imports}\n\nmodel = SentenceTransformer({quoted(name)})"


def sentence_embeddings(model: Model, tokenizer: Tokenizer, sentences: Sequence[str], batch_size: int = 16) -> Tensor:
    """Embeddings of a headless encoder as its checkpoint serves them, see `heat_hf.encoders.served`.

    Batches are those of sentence-transformers' evaluators, so that a model whose outputs depend on what else is in a batch, as
    with activations in int8, gets the same score as there.

    Args:
        model: a headless encoder, or one exported to ONNX.
        tokenizer: its tokenizer.
        sentences: texts, without the checkpoint's prompt.
        batch_size: rows in a batch.

    Returns:
        float32 of extents (sentences, dimensions), on the CPU.

    Raises:
        ValueError: if the checkpoint's embeddings are made in a way that is not known.
    """
    import numpy as np
    import torch
    from tqdm.auto import tqdm

    from heat_hf.encoders.served import served_by
    from heat_hf.evaluation.forward import evaluating

    served = served_by(model)
    tokenizer = served.tokenizer(tokenizer, model.config)
    order = np.argsort([-len(sentence) for sentence in sentences])
    vectors: list[Tensor] = [torch.empty(0)] * len(sentences)
    with evaluating(model):
        for start in tqdm(range(0, len(order), batch_size), desc="Evaluating", unit="batch"):
            rows = order[start : start + batch_size].tolist()
            inputs, prompt_length = served.encode(tokenizer, [sentences[row] for row in rows])
            inputs = inputs.to(model.device)
            found = served(model(**inputs)[0], inputs["attention_mask"], prompt_length)
            for row, vector in zip(rows, found.float().cpu(), strict=True):
                vectors[row] = vector
    return torch.stack(vectors)
