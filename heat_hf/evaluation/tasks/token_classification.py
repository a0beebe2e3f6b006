"""Classes of words, as named entities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from heat_hf.evaluation.tasks.base import Columns, Second, Task, class_of

if TYPE_CHECKING:
    from heat_hf.evaluation.tasks.base import Model, Tokenizer

IGNORED = -100  # label of tokens that do not count, as PyTorch's cross entropy has it


class TokenClassification(Task):
    """The class with the largest logit at each word's first token."""

    name = "token-classification"
    head = "ForTokenClassification"
    columns = ("tokens", "", "ner_tags")
    metrics = ("entities",)
    main = "f1"
    pipeline = "token-classification"
    words = True

    def predict(self, model: Model, tokenizer: Tokenizer, first: Sequence[Any], second: Second) -> list[list[str]]:
        """Name of each word's class; words that were cut off get class 0.

        Raises:
            ValueError: if there is a second text.
        """
        if second is not None:
            raise ValueError("token classification takes one column of words, and no second text")
        from heat_hf.evaluation.forward import forward_rows

        names = _class_names(model)
        tags = [[names[0]] * len(words) for words in first]
        for rows, inputs, output in forward_rows(model, tokenizer, first, words=True):
            for index, (row, classes) in enumerate(zip(rows, output.logits.argmax(-1).tolist(), strict=True)):
                for word, token in _first_tokens(inputs.word_ids(index)).items():
                    tags[row][word] = names[classes[token]]
        return tags

    def references(self, model: Model, references: list[Any]) -> list[list[str]]:
        """Names of the tags; numbers are those of the model's classes.

        Raises:
            ValueError: as `class_of`.
        """
        names = _class_names(model)
        return [[names[class_of(model, tag)] for tag in row] for row in references]

    def encode(self, rows: Any, columns: Columns, tokenizer: Tokenizer, max_length: int, stride: int) -> Any:  # noqa: ANN401
        """Token ids, and each word's tag at its first token."""
        words, _, tags = columns
        numbers = {name: number for number, name in enumerate(self.labels(rows, columns))}

        def tokenize(batch: dict[str, list[Any]]) -> dict[str, Any]:
            inputs = tokenizer(batch[words], truncation=True, max_length=max_length, is_split_into_words=True)
            labels = []
            for index, row in enumerate(batch[tags]):
                word_ids = inputs.word_ids(index)
                labels.append([IGNORED] * len(word_ids))
                for word, token in _first_tokens(word_ids).items():
                    labels[-1][token] = numbers.get(row[word], row[word])
            return {**inputs, "labels": labels}

        return rows.map(tokenize, batched=True, remove_columns=rows.column_names)

    def collator(self, tokenizer: Tokenizer) -> Any:  # noqa: ANN401
        """Pads labels, too."""
        from transformers import DataCollatorForTokenClassification

        return DataCollatorForTokenClassification(tokenizer)

    def labels(self, rows: Any, columns: Columns) -> list[str]:  # noqa: ANN401
        """Names of the tags: the data set's, or those in it, "O" first."""
        feature = rows.features[columns[2]]
        names = getattr(getattr(feature, "feature", None), "names", None)
        if names:
            return list(names)
        tags = {tag for row in rows[columns[2]] for tag in row}
        if all(isinstance(tag, int) for tag in tags):
            return [str(number) for number in range(max(tags) + 1)]
        return sorted(tags, key=lambda tag: (tag != "O", tag))


def _first_tokens(word_ids: Sequence[int | None]) -> dict[int, int]:
    """Word → its first token."""
    return {word: token for token, word in reversed(list(enumerate(word_ids))) if word is not None}


def _class_names(model: Model) -> list[str]:
    config: Any = model.config
    return [config.id2label[number] for number in range(config.num_labels)]
