"""What counts as rows: what holds some is understood, everything else is refused by name, wherever rows are taken."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import datasets
import pandas
import pyarrow
import pytest
import torch
import transformers
from conftest import small_model, token_ids

from heat_hf import HeatCompressor, HeatConfig, evaluate_task
from heat_hf.encoders import rows as rows_module
from heat_hf.encoders.batches import calibration_batches, encode_rows
from heat_hf.encoders.rows import as_rows
from heat_hf.evaluation.quality import Quality

TEXTS = ["one text", "another", "the third of them"]
TABLE = datasets.Dataset.from_dict({"text": TEXTS, "label": [0, 1, 0]})
ROWS = TABLE.to_list()


@pytest.fixture(scope="module")
def tokenizer(minilm: str) -> transformers.PreTrainedTokenizerBase:
    return transformers.AutoTokenizer.from_pretrained(minilm)


@pytest.mark.parametrize(
    "form",
    [
        TABLE,
        TABLE.to_iterable_dataset(),
        TABLE[:],
        TABLE.to_pandas(),
        TABLE.data.table,
        tuple(ROWS),
        (row for row in ROWS),
        dict(enumerate(ROWS)).values(),
    ],
    ids=lambda form: type(form).__name__,
)
def test_every_form_of_the_same_rows(form: Any) -> None:
    assert as_rows(form, "rows") == ROWS


def test_texts_of_other_libraries() -> None:
    for form in (TEXTS, iter(TEXTS), pandas.Series(TEXTS), pyarrow.array(TEXTS).to_numpy(zero_copy_only=False), TABLE["text"]):
        assert as_rows(form, "rows") == TEXTS


WRONG = {
    "DatasetDict": (
        datasets.DatasetDict(train=TABLE, test=TABLE),
        r"has the splits train, test: take one of them, as .*'train'",
    ),
    "streams": (datasets.IterableDatasetDict(all=TABLE.to_iterable_dataset()), "has the splits all"),
    "path": ("data/train.parquet", "'data/train.parquet' is one text or a path"),
    "Path": (Path("data/train.txt"), "is one text or a path"),
    "bytes": (b"text", "is bytes"),
    "set": (set(TEXTS), "is a set, which has no order"),
    "frozenset": (frozenset(TEXTS), "is a set"),
    "one row": ({"text": "one text"}, "put one row into a list"),
    "one batch": ({"input_ids": token_ids()}, "is one batch of tensors"),
    "ragged columns": ({"text": TEXTS, "label": [1]}, "columns of different lengths"),
    "tensor": (token_ids(), "put it into a batch"),
    "number": (7, "7 is no collection of rows"),
    "None inside": (["a", None], "row 1 is None"),
    "pairs": ([("a", "b")], r"row 0 is \('a', 'b'\)"),
    "numbers": (range(3), "row 0 is 0"),
    "batches of TensorDataset": ([[token_ids()]], "row 0 is "),
    "nothing": ([], "is empty"),
    "empty generator": (iter(()), "is empty"),
    "empty columns": ({"text": []}, "is empty"),
    "empty mapping": ({}, "mapping whose values are no columns"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_holds_no_rows_is_refused_everywhere(case: str, tokenizer: transformers.PreTrainedTokenizerBase) -> None:
    data, message = WRONG[case]
    model = small_model("bert")
    compressor = HeatCompressor(model, tokenizer)
    config, search = HeatConfig(target_params_ratio=0.5), HeatConfig(rank_search="supernet", target_params_ratio=0.5)
    places = {
        "calibration_dataset": lambda data: compressor.compress(config, data),
        "train_dataset": lambda data: compressor.search_ranks(search, TEXTS, train_dataset=data, eval_dataset=TEXTS),
        "eval_dataset": lambda data: compressor.search_ranks(search, TEXTS, train_dataset=TEXTS, eval_dataset=data),
        "the dataset": lambda data: encode_rows(data, tokenizer),
        "the data": lambda data: evaluate_task(model, tokenizer, "text-classification", data, ("text", "", "label")),
    }
    before = [parameter.clone() for parameter in model.parameters()]
    for name, take in places.items():
        if name in ("train_dataset", "eval_dataset"):  # generators were used up
            model.config.vocab_size = len(tokenizer)
        given = iter(()) if case == "empty generator" else data
        with pytest.raises(ValueError, match=message) as caught:
            take(given)
        assert name in str(caught.value), name
        assert "\n" not in str(caught.value)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_stream_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "MOST_ROWS", 100)
    with pytest.raises(ValueError, match=r"rows has more than 100 rows, and no length: take the first ones"):
        as_rows(itertools.cycle(TEXTS), "rows")
    assert len(as_rows(["a"] * 101, "rows")) == 101


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (["", " ", "\n"], "holds 3 texts, all of them empty"),
        (["a", {"text": None}], "row 1 of calibration_dataset must have a text in column 'text', got None"),
        ([{"text": "a"}, {"text": float("nan")}], "row 1 of .* got nan"),
        ([{"text": 3}], "row 0 of .* got 3"),
        ([{"text": "a"}, {"body": "b"}], "row 1 of .* its columns are body"),
        ([{"input_ids": []}], "row 0 of .* must have token ids"),
        ([{"input_ids": [3, -1]}], "row 0 of .* must have token ids"),
        ([{"input_ids": [1.5]}], "row 0 of .* must have token ids"),
        ([{"input_ids": "abc"}], "row 0 of .* must have token ids"),
        ([{"input_ids": [5, 6], "attention_mask": [0, 0]}], "row 0 of .* is padding alone"),
        ([{"input_ids": [5, 6], "attention_mask": [1]}], "row 0 of .* has 2 input_ids, 1 attention_mask"),
        ([{"input_ids": [5, 6], "token_type_ids": "ab"}], "row 0 of .* must have whole numbers in token_type_ids"),
        ([{"input_ids": [5, 99]}], "has the token 99 in batch 0; the model has the tokens 0 to 59"),
        ([{"input_ids": token_ids()}, {"input_ids": token_ids() + 50}], "in batch 1; the model has the tokens 0 to 59"),
        ([{"input_ids": token_ids() - 9}], "the token -.* in batch 0"),
        ([{"input_ids": token_ids().float()}], "batch 0 of .* must have token ids"),
        ([{"input_ids": token_ids()[:0]}], "batch 0 of .* must have token ids"),
        ([{"input_ids": token_ids(), "attention_mask": torch.zeros(3, 7)}], "has a row of padding alone"),
        ([{"input_ids": token_ids(), "attention_mask": torch.ones(3, 6)}], r"an attention_mask of \(3, 6\)"),
        ([{"input_ids": token_ids(), "token_type_ids": token_ids()}], "does not run with batch 0 .*token_type_ids"),
        ([{"input_ids": token_ids(1, 600)}], "does not run with batch 0 of the calibration data"),
    ],
)
def test_rows_that_a_model_cannot_read(data: Any, message: str, tokenizer: transformers.PreTrainedTokenizerBase) -> None:
    model = small_model("bert")
    with pytest.raises(ValueError, match=message):
        HeatCompressor(model, tokenizer).compress(HeatConfig(target_params_ratio=0.5), data)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_tokenized_rows_are_what_their_texts_are(tokenizer: transformers.PreTrainedTokenizerBase) -> None:
    """As `Dataset.map` leaves them: padding does not count, and second texts keep their type."""
    pairs = [{"sentence1": first, "sentence2": second} for first, second in itertools.pairwise([*TEXTS, "a b c d e f"])]
    wanted = [tokenizer(*row.values(), max_length=9, truncation=True) for row in pairs]
    for options in ({}, {"padding": "max_length"}, {"padding": True, "return_tensors": "np"}):
        columns = [[row[name] for row in pairs] for name in ("sentence1", "sentence2")]
        data = dict(tokenizer(*columns, max_length=9, truncation=True, **options))
        tokenized = [dict(zip(data, values, strict=True)) for values in zip(*data.values(), strict=True)]
        for rows in (pairs, tokenized):
            found = encode_rows(rows, tokenizer, max_length=9)
            assert [row["input_ids"] for row in found] == [row["input_ids"] for row in wanted]
            assert [row["token_type_ids"] for row in found] == [row["token_type_ids"] for row in wanted]
            assert any(any(row["token_type_ids"]) for row in found)
    with_one = encode_rows([pairs[0], TEXTS[0]], tokenizer)[1]
    assert with_one["token_type_ids"] == [0] * len(with_one["input_ids"])
    assert all(set(row) == {"input_ids"} for row in encode_rows(TEXTS, tokenizer))


def test_labels_that_are_no_classes() -> None:
    """Test splits have -1 where labels are not public; it is never right, so accuracies would be 0."""
    batches = [{"input_ids": token_ids(), "labels": torch.tensor([0, label, 1])} for label in (1, -1)]
    with pytest.raises(ValueError, match="the evaluation rows have the label -1; the model has 0 to 1"):
        Quality(small_model("bert"), batches)


def test_a_row_that_names_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("texts.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"rows must hold texts: row 0 names the file 'texts.txt', read it with"):
        as_rows(["texts.txt"], "rows")


def test_lengths_without_room_for_text(tokenizer: transformers.PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="rows of 2 tokens have no text beside the 2 tokens that the tokenizer adds"):
        calibration_batches(TEXTS, tokenizer, max_length=2)
    longest = calibration_batches([" ".join(["word"] * 9999)], tokenizer, max_length=10_000)[0]
    assert longest["input_ids"].shape[1] == tokenizer.model_max_length


def test_labels_that_are_words(tokenizer: transformers.PreTrainedTokenizerBase) -> None:
    rows = [{"text": "a", "label": "yes"}, {"text": "b", "label": "no"}]
    assert [row["labels"] for row in encode_rows(rows, tokenizer, classes={"no": 0, "yes": 1})] == [1, 0]
    assert "labels" not in encode_rows(rows, tokenizer)[0]
    with pytest.raises(ValueError, match="row 1 of eval has the label 'no'; the model has yes"):
        encode_rows(rows, tokenizer, name="eval", classes={"yes": 1})


def pairs(first: list[Any], scores: list[Any]) -> dict[str, list[Any]]:
    return {"sentence1": first, "sentence2": ["b", "c"], "score": scores}


@pytest.mark.parametrize(
    ("task", "rows", "message"),
    [
        ("sentence-similarity", pairs(["a", None], [1.0, 2.0]), "nothing in column 'sentence1' of row 1"),
        ("sentence-similarity", pairs(["a", "b"], [1.0, float("nan")]), "nothing in column 'score' of row 1"),
        ("sentence-similarity", pairs(["a", 4], [1.0, 2.0]), "'sentence1' must have a text in every row, got 4 in row 1"),
        ("sentence-similarity", pairs(["a", "b"], ["x", "y"]), "references in column 'score'"),
        ("sentence-similarity", pairs(["a", "b"], [1.0, 1.0]), "spearman of these 2 rows is not a number"),
        ("text-classification", {"sentence": ["a", "b"], "label": ["LABEL_0", "bad"]}, "references in column 'label' .* 'bad'"),
        ("text-classification", {"sentence": [["a"], ["b"]], "label": [0, 1]}, "must have a text in every row"),
        ("token-classification", {"tokens": ["a b"], "ner_tags": [[0, 1]]}, "must have a list of words"),
        ("token-classification", {"tokens": [["a", "b"]], "ner_tags": [[0, 7]]}, "references in column 'ner_tags'"),
        ("text-classification", {"sentence": ["a", "b"], "label": [-1, -1]}, "-1 is no class of the model, which has 0 to 1"),
        ("text-classification", {"sentence": ["a", "b"], "label": [0, 0.5]}, "0.5 is no class of the model"),
        ("text-classification", {"sentence": ["a", "b"], "label": [[0], [1]]}, r"\[0\] is no class of the model"),
        ("token-classification", {"tokens": [["a", "b"]], "ner_tags": [[0, -1]]}, "-1 is no class of the model"),
        ("token-classification", {"tokens": [["a"]], "ner_tags": [["B-PER"]]}, "'B-PER' is no class .* 'LABEL_0, LABEL_1'"),
        ("text-classification", {"sentence": ["a"]}, "the data has no column 'label'; it has sentence"),
        ("text-classification", ["a", "b"], "no column 'sentence'; it has texts without columns"),
    ],
)  # fmt: skip
def test_what_cannot_be_scored(task: str, rows: Any, message: str, tokenizer: transformers.PreTrainedTokenizerBase) -> None:
    config = transformers.AutoConfig.for_model(
        "bert", hidden_size=24, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, vocab_size=len(tokenizer)
    )
    from heat_hf import TASKS

    model = TASKS[task].model_class.from_config(config)
    with pytest.raises(ValueError, match=message) as caught:
        evaluate_task(model, tokenizer, task, rows)
    assert "\n" not in str(caught.value)


def test_words_for_classes_are_scored_as_their_numbers(tokenizer: transformers.PreTrainedTokenizerBase) -> None:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        "bert", hidden_size=24, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, vocab_size=len(tokenizer)
    )
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    rows = {"sentence": TEXTS, "label": [0, 1, 1]}
    words = {**rows, "label": [f"LABEL_{number}" for number in rows["label"]]}
    scores = [evaluate_task(model, tokenizer, "text-classification", data) for data in (rows, words)]
    assert scores[0] == scores[1]
