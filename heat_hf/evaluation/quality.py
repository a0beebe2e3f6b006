"""How good a network is: what fraction of evaluation rows it gets right, or says as the dense model does."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from heat_hf.encoders.batches import Batch, model_inputs
from heat_hf.encoders.signals import Signal, divergence, output_signals


class Quality:
    """Scores networks on the same rows, between 0 and 1.

    Where rows have labels and the model classifies sequences, accuracy. Else agreement with the dense model: the fraction of
    classes it also takes, or one minus the divergence of numbers and embeddings.

    Args:
        dense: the model before.
        batches: model inputs, with `labels` or without.

    Raises:
        ValueError: if there is no batch.
    """

    def __init__(self, dense: PreTrainedModel, batches: Sequence[Batch]) -> None:
        if not batches:
            raise ValueError("there are no evaluation rows")
        self.batches = list(batches)
        self.reference = self.signals(dense)
        self.labelled = all("labels" in batch for batch in batches) and all(
            len(own) == 1 and own[0].categorical and len(own[0].values) == len(batch["labels"])
            for own, batch in zip(self.reference, batches, strict=True)
        )

    def signals(self, model: PreTrainedModel) -> list[list[Signal]]:
        """What a model says to every batch."""
        training = model.training
        model.eval()
        found = []
        with torch.inference_mode():
            for batch in self.batches:
                inputs = model_inputs(batch, model.device)
                found.append(output_signals(model(**inputs), inputs, model.config))
        model.train(training)
        return found

    def __call__(self, model: PreTrainedModel) -> float:
        """The model's score."""
        return self.both(model)[0]

    def both(self, model: PreTrainedModel) -> tuple[float, float]:
        """The model's score, and its mean divergence from the dense model."""
        right = lost = sequences = 0.0
        for own, other, batch in zip(self.signals(model), self.reference, self.batches, strict=True):
            rows = len(next(iter(batch.values())))
            apart = float(divergence(own, other))
            lost, sequences = lost + apart * rows, sequences + rows
            right += self._right(own, other, batch, rows, apart)
        return right / sequences, lost / sequences

    def _right(self, own: Sequence[Signal], other: Sequence[Signal], batch: Batch, rows: int, apart: float) -> float:
        if self.labelled:
            return float((own[0].values.argmax(-1).cpu() == batch["labels"]).sum())
        if not own[0].categorical:
            return rows * (1 - min(1.0, apart))
        pairs = zip(own, other, strict=True)
        return sum(float(((a.values.argmax(-1) == b.values.argmax(-1)) * a.weights).sum()) for a, b in pairs)
