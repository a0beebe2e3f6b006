"""How good a network is: the fraction of evaluation rows it gets right, or on which it agrees with the dense model."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from heat_hf.encoders.batches import Batch, model_inputs, sequences
from heat_hf.encoders.signals import Signal, divergence, output_signals
from heat_hf.evaluation.forward import evaluating


class Quality:
    """Scores networks on the same rows, between 0 and 1.

    Where rows have labels and the model classifies sequences, accuracy. Else agreement with the dense model: the fraction of
    classes it also takes, or one minus the divergence of numbers and embeddings, over their mean square where that is above 1.

    Args:
        dense: the model before.
        batches: model inputs, with `labels` or without.

    Raises:
        ValueError: if there is no batch, or a label is no class of the model, as the -1 of test splits.
    """

    def __init__(self, dense: PreTrainedModel, batches: Sequence[Batch]) -> None:
        if not batches:
            raise ValueError("there are no evaluation rows")
        self.batches = list(batches)
        self.reference = self.signals(dense)
        self.labelled = all("labels" in batch for batch in batches) and all(
            len(signals) == 1 and signals[0].categorical and len(signals[0].values) == len(batch["labels"])
            for signals, batch in zip(self.reference, batches, strict=True)
        )
        for signals, batch in zip(self.reference, batches, strict=True) if self.labelled else ():
            classes, labels = signals[0].values.shape[-1], batch["labels"]
            wrong = labels[(labels < 0) | (labels >= classes)]
            if len(wrong):
                raise ValueError(f"the evaluation rows have the label {int(wrong[0])}; the model has 0 to {classes - 1}")

    def signals(self, model: PreTrainedModel) -> list[list[Signal]]:
        """A model's outputs for every batch."""
        signals = []
        with evaluating(model):
            for batch in self.batches:
                inputs = model_inputs(batch, model.device)
                signals.append(output_signals(model(**inputs), inputs, model))
        return signals

    def __call__(self, model: PreTrainedModel) -> float:
        """The model's score."""
        return self.both(model)[0]

    def both(self, model: PreTrainedModel) -> tuple[float, float]:
        """The model's score, and its mean divergence from the dense model."""
        right = lost = total = 0.0
        for signals, reference, batch in zip(self.signals(model), self.reference, self.batches, strict=True):
            rows = sequences(batch)
            apart = float(divergence(signals, reference))
            lost, total = lost + apart * rows, total + rows
            right += self._right(signals, reference, batch, rows, apart)
        return right / total, lost / total

    def _right(self, signals: Sequence[Signal], reference: Sequence[Signal], batch: Batch, rows: int, apart: float) -> float:
        """Number of a batch's rows that are right, as far as a row can be."""
        if self.labelled:
            return float((signals[0].values.argmax(-1).cpu() == batch["labels"]).sum())
        if not signals[0].categorical:
            size = sum(float(signal.values.square().sum(-1).mean()) for signal in reference)  # 1 for embeddings of length 1
            return rows * (1 - min(1.0, apart / max(1.0, size)))
        pairs = zip(signals, reference, strict=True)
        return sum(float(((a.values.argmax(-1) == b.values.argmax(-1)) * a.weights).sum()) for a, b in pairs)
