"""Exact match and F1 of answers, as SQuAD v1.1's official script defines them: in percent, the best of all references."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(answer: str) -> str:
    """In lower case, without punctuation, articles and extra white space."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_WITHOUT_PUNCTUATION)).split())


def exact_match(prediction: str, reference: str) -> float:
    """1 if both are the same once normalized."""
    return float(normalized(prediction) == normalized(reference))


def token_f1(prediction: str, reference: str) -> float:
    """Harmonic mean of precision and recall of the answers' words."""
    said, right = (normalized(text).split() for text in (prediction, reference))
    common = sum((Counter(said) & Counter(right)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(said), common / len(right)
    return 2 * precision * recall / (precision + recall)


def exact_match_and_f1(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Both scores in percent.

    Args:
        predictions: an answer to each question.
        references: the answers that count as right, for each question.
    """

    def mean(score: Callable[[str, str], float]) -> float:
        pairs = zip(predictions, references, strict=True)
        return 100.0 * sum(max(score(said, answer) for answer in answers) for said, answers in pairs) / len(predictions)

    return {"exact_match": mean(exact_match), "f1": mean(token_f1)}
