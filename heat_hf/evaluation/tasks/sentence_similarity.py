"""Sentence encoders: how similar two sentences are, by the cosine of their embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from heat_hf.evaluation.tasks.base import Columns, Second, Task

if TYPE_CHECKING:
    from torch import Tensor

    from heat_hf.evaluation.tasks.base import Model, Tokenizer


class SentenceSimilarity(Task):
    """Cosine of the embeddings of two sentences; trained on sentences alone, without labels."""

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
        vectors = sentence_embeddings(model, tokenizer, [*first, *second])
        return (vectors[: len(first)] * vectors[len(first) :]).sum(1).tolist()

    def encode(self, rows: Any, columns: Columns, tokenizer: Tokenizer, max_length: int, stride: int) -> Any:  # noqa: ANN401
        """Token ids of the sentences in either column."""
        texts = [name for name in columns[:2] if name]

        def tokenize(batch: dict[str, list[Any]]) -> dict[str, Any]:
            sentences = [sentence for name in texts for sentence in batch[name]]
            return dict(tokenizer(sentences, truncation=True, max_length=max_length))

        return rows.map(tokenize, batched=True, remove_columns=rows.column_names)

    def usage(self, name: str) -> str:
        """Loads the model with sentence-transformers."""
        return f'import heat_hf\nfrom sentence_transformers import SentenceTransformer\n\nmodel = SentenceTransformer("{name}")'


def sentence_embeddings(model: Model, tokenizer: Tokenizer, sentences: Sequence[str], batch_size: int = 64) -> Tensor:
    """Mean-pooled, normalized token embeddings of a headless encoder, as all-MiniLM-L6-v2 defines them.

    Returns:
        float32 of extents (sentences, hidden size), on the CPU.
    """
    import torch

    from heat_hf.evaluation.forward import forward_rows

    pooled: list[Tensor] = [torch.empty(0)] * len(sentences)
    for rows, inputs, output in forward_rows(model, tokenizer, sentences, batch_size=batch_size):
        mask = inputs["attention_mask"].to(output[0].device)[..., None]
        mean = (output[0] * mask).sum(1) / mask.sum(1).clamp_min(1)
        for row, vector in zip(rows, torch.nn.functional.normalize(mean.float().cpu(), dim=1), strict=True):
            pooled[row] = vector
    return torch.stack(pooled)
