"""Tables of Level 3."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from benchmarks.provenance import captioned, source_line

FORMATS = ("low_rank", "tucker", "cp", "ttm")
METHODS = {"sensitivity": "HEAT", "manual": "hand-tuned", "tensorly": "TensorLy's ranks", "random": "random"}
NOT_YET = "Not measured yet: `python -m benchmarks.distillation --parts {part}`."
RECIPES = {
    "labels": "labels only (cross entropy)",
    "one-stage": "one stage: attention, hidden states and logits together",
    "logits": "logits only",
    "hidden-logits": "hidden states, then logits",
    "attention-logits": "attention maps, then logits",
    "two-stage": "two stages: attention maps and hidden states, then logits",
}


def measured(data: dict, dataset: str) -> list[dict]:
    """Rows of a data set that could be measured."""
    return [row for row in data["rows"].values() if row.get("dataset") == dataset]


def average(values: Iterable[float], form: str) -> str:
    """Mean of what was measured, or a dash."""
    found = list(values)
    return format(statistics.mean(found), form) if found else "–"


def mean(values: Iterable[float], form: str = ".4f") -> str:
    """As `average`, and the range where there are several."""
    found = list(values)
    spread = f" ({min(found):{form}}–{max(found):{form}}, {len(found)} seeds)" if len(found) > 1 else ""
    return average(found, form) + spread


def networks(data: dict, dataset: str, form: str) -> list[str]:
    """Every format and method at every EDP gain, before and after distillation; then those that are the same network.

    Args:
        data: results.
        dataset: whose.
        form: of a score.
    """
    rows = measured(data, dataset)
    first = rows[0]
    lines = [
        "| format | ranks by | variant | EDP gain | EDP, µJ·s | parameters, M | untrained | distilled | drop, points "
        "| agreement | divergence |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        f"| dense | | | 1 | {first['edp_uJs'] * first['edp_gain']:.3f} | {data['dense_params_M'][dataset]:.2f} | "
        f"| {first['teacher_score']:{form}} | 0 | 1 | 0 |",
    ]
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["decomposition"], row["rank_search"], row["variant"]), []).append(row)
    for decomposition, method, variant in sorted(groups, key=_place):
        own = groups[decomposition, method, variant]
        one = own[0]
        drop = statistics.mean(row["accuracy_drop"] for row in own)
        lines.append(
            f"| {decomposition} | {METHODS[method]} | {variant if method == 'sensitivity' else ''} | {one['edp_gain']:.2f}× "
            f"| {one['edp_uJs']:.4f} | {one['params_M']:.2f} | {one['untrained_score']:{form}} "
            f"| {mean((row['score'] for row in own), form)} | {drop:.2f} "
            f"| {average((row['agreement'] for row in own if 'agreement' in row), '.3f')} "
            f"| {average((row['divergence'] for row in own if 'divergence' in row), '.4f')} |"
        )
    return [*lines, *_others(data)]


def classification(data: dict) -> str:
    """SST-2."""
    caption = (
        "MiniLM classifier, SST-2 validation (872 rows, accuracy; one row is 0.11 points), after "
        f"{measured(data, 'SST-2')[0]['steps']:,} steps of "
        "32. EDP: of the 36 encoder matrices. Agreement and divergence: with the dense model, on "
        f"{data['unseen']:,} other sentences."
    )
    return captioned(networks(data, "SST-2", ".4f"), caption, source_line(data))


def reader(data: dict) -> str:
    """SQuAD."""
    first = measured(data, "SQuAD")[0]
    caption = (
        f"MiniLM reader, F1 on {data['questions']:,} questions of SQuAD v1.1's development set, after {first['steps']} steps "
        f"of 16 windows. EDP at {first['tokens']} tokens, of 36 matrices. Agreement, divergence: with the dense model, on "
        f"{data['unseen']:,} other windows."
    )
    return captioned(networks(data, "SQuAD", ".2f"), caption, source_line(data))


def transfer(data: dict, found_there: dict) -> str:
    """SST-2 with settings found on SQuAD, and with those found there.

    Args:
        data: of the reader.
        found_there: of the classifier.
    """
    rows = measured(found_there, "SST-2")
    lines = [
        "| settings found on | variant | EDP gain | parameters | untrained | distilled | agreement | divergence |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for variant, row in data["transfer"].items():
        there = [
            r for r in rows if (r["decomposition"], r["rank_search"], r["variant"]) == ("low_rank", "sensitivity", variant)
        ]
        for name, own in (("SQuAD", [row]), ("SST-2", there)):
            one = own[0]
            lines.append(
                f"| {name} | {variant} | {one['edp_gain']:.2f}× | {one['params_ratio']:.2f} | {one['untrained_score']:.4f} "
                f"| {mean(r['score'] for r in own)} | {average((r['agreement'] for r in own), '.3f')} "
                f"| {average((r['divergence'] for r in own), '.4f')} |"
            )
    caption = (
        "Low rank by HEAT's search, in a MiniLM classifier of SST-2, projected and distilled alike. Searched at 384 tokens on "
        "SQuAD, at 128 on SST-2; EDP at 128."
    )
    return captioned(lines, caption, source_line(data))


def _place(group: tuple[str, str, str]) -> tuple[float, int, int]:
    """In order of gains, then of formats, then of methods."""
    decomposition, method, variant = group
    return -int(variant[-1]), FORMATS.index(decomposition), list(METHODS).index(method)


def _name(key: str) -> str:
    """A row's format, method and EDP gain, from its key."""
    decomposition, method, gain, _ = key.split()[-4:]
    return f"{decomposition} {METHODS[method]} {gain}×"


def _others(data: dict) -> list[str]:
    """What cannot keep a budget, and the same networks under several names."""
    same: dict[str, list[str]] = {}
    for key, row in data["rows"].items():
        if "same_as" in row:
            same.setdefault(_name(row["same_as"]), []).append(_name(key))
    out = [_name(key) for key, row in data["rows"].items() if "unreachable" in row]
    lines = ["", "| network | not trained again: the same network |", "|---|---|"]
    lines += [f"| {name} | {', '.join(others)} |" for name, others in same.items()]
    if out:
        lines.append(f"| none: EDP out of reach at any rank | {', '.join(out)} |")
    return lines


def faster(data: dict) -> str:
    """The same networks by two schedules."""
    if "faster" not in data:
        return NOT_YET.format(part="faster")
    rates = next(iter(data["faster"].values()))
    lines = [
        "| network | accuracy | agreement | divergence | faster: accuracy | agreement | divergence |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for key, own in data["faster"].items():
        cells = (f"{row['score']:.4f} | {row['agreement']:.3f} | {row['divergence']:.4f}" for row in (data["rows"][key], own))
        lines.append(f"| {_name(key)} | {' | '.join(cells)} |")
    caption = (
        "SST-2 as above, seed 0. Faster: peak learning rates of the two stages "
        f"{rates['learning_rate']:g} and {rates['logit_learning_rate']:g}."
    )
    return captioned(lines, caption, source_line(data))


def recipes(data: dict) -> str:
    """The paper's Table 4."""
    table = data.get("recipes", {})
    if len(table) < len(RECIPES):
        return NOT_YET.format(part="recipes")
    none, first = data["untrained"], next(iter(table["two-stage"].values()))
    lines = [
        "| re-training | peak learning rate of each stage | accuracy | agreement | divergence |",
        "|---|---:|---:|---:|---:|",
        f"| none | | {none['score']:.4f} | {none['agreement']:.3f} | {none['divergence']:.4f} |",
    ]
    lines += [
        f"| {label} | {rates} | {mean(own['scores'].values())} "
        f"| {average(own.get('agreement', {}).values(), '.3f')} | {mean(own.get('divergence', {}).values())} |"
        for name, label in RECIPES.items()
        for rates, own in table[name].items()
    ]
    caption = (
        f"SST-2 validation, dense {first['teacher_score']:.4f}. TTM at an EDP gain of {first['edp_gain']:.2f}×, "
        f"{first['params_ratio']:.2f} of the parameters; {first['steps']} steps of 32 rows each way. Of several seeds, mean "
        "and range. Agreement and divergence as above."
    )
    return captioned(lines, caption, source_line(data))


def embeddings(data: dict) -> str:
    """STS-B."""
    rows = measured(data, "STS-B")
    if not rows:
        return NOT_YET.format(part="embeddings")
    lines = [
        "| variant | EDP gain | parameters, M | untrained | distilled | dense |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['variant']} | {row['edp_gain']:.2f}× | {row['params_M']:.2f} | {row['untrained_score']:.4f} "
        f"| {row['score']:.4f} | {row['teacher_score']:.4f} |"
        for row in rows
    ]
    first = rows[0]
    caption = (
        f"all-MiniLM-L6-v2, STS-B test (1,379 pairs, Spearman). Distilled without labels on {first['train_rows']:,} sentences "
        f"of text/train, {first['steps']:,} steps of 32, seed {first['seed']}."
    )
    return captioned(lines, caption, source_line(data))


def gains(row: dict) -> str:
    """EDP gains of the encoder's matrices and of the whole model."""
    return f"{row['edp_gain']:.2f}× ({row['whole_gain']:.2f}×)"


def beside(data: dict) -> str:
    """Ranks and widths from refined cores, and networks with fewer blocks, each in float32 and in int8."""
    lines = [
        "| data | EDP gain | what | parameters | untrained | steps | CPU time | distilled | divergence | int8: time | score |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, dense in data["dense"].items():
        int8 = data["rows"][f"{name} int8"]
        lines.append(f"| {name} | 1× | dense | 1.00 | | | 1.00 | {dense:.4f} | 0 | {int8['time']:.2f} | {int8['score']:.4f} |")
        for own in _seeds(data, name):
            first = own[0]
            if "schedule" not in first:
                continue
            label = f"{first['size']:g} of 6 blocks" if first["structure"] == "blocks" else first["structure"]
            # Seeds of the training have no part in how fast a structure is: times are the first one's, on one machine.
            time, apart = _time(first), average((row["divergence"] for row in own), ".4f")
            small = [row["int8"] for row in own if "int8" in row]
            faster = _time(first.get("int8", {}))
            score = mean(row["score"] for row in small) if small else ""
            lines.append(
                f"| {name} | {gains(first)} | {label} | {first['params_ratio']:.2f} | {first['untrained_score']:.4f} "
                f"| {first['schedule']['max_steps']:,} | {time} | {mean(row['score'] for row in own)} | {apart} "
                f"| {faster} | {score} |"
            )
    scores = {"STS-B": "Spearman on STS-B test", "SST-2": "accuracy on SST-2 validation"}
    caption = (
        f"MiniLM; {', '.join(scores[name] for name in data['dense'])}; steps of 32, the same rows. Parameters, EDP: of "
        "matrices (of the model). CPU time: 8 × 128 tokens, first seed. Divergence: on "
        f"{data['unseen']:,} sentences. int8: PyTorch's."
    )
    return captioned(lines, caption, source_line(data))


def _time(row: dict) -> str:
    """Over the dense one's; nothing where it was measured on another processor than those of the other rows."""
    return f"{row['time']:.2f}" if "time" in row else ""


def _seeds(data: dict, name: str) -> list[list[dict]]:
    """A data set's rows that differ in their seed alone, from small gains to large ones."""
    groups: dict[tuple, list[dict]] = {}
    for row in data["rows"].values():
        if row["data"] == name:
            groups.setdefault((row["structure"], row.get("size")), []).append(row)
    return sorted(groups.values(), key=lambda own: own[0].get("edp_gain", 0))


def question_answering(data: dict) -> str:
    """SQuAD: dense, factorized and distilled, and the same answers scored by two implementations."""
    row, twice = data["row"], data["scored_twice"]
    lines = [
        "| reader | EDP gain | of the whole model | parameters, M | exact match | F1 |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    gains = row["edp_gain"], row["whole_gain"]
    for label, key, (gain, of_all), size in (
        ("dense", "teacher_scores", (1.0, 1.0), data["dense_params_M"]),
        ("factorized", "untrained_scores", gains, row["params_M"]),
        ("distilled", "scores", gains, row["params_M"]),
    ):
        own = row[key]
        lines.append(f"| {label} | {gain:.2f}× | {of_all:.2f}× | {size:.2f} | {own['exact_match']:.2f} | {own['f1']:.2f} |")
    lines += ["", "| the distilled reader's answers scored by | exact match | F1 |", "|---|---:|---:|"]
    for label, key in (("heat_hf", "heat_hf"), ("TorchMetrics", "torchmetrics")):
        lines.append(f"| {label} | {twice[key]['exact_match']!r} | {twice[key]['f1']!r} |")
    caption = (
        f"The complete official development set, {data['questions']:,} questions, windows of {row['tokens']} tokens. Trained "
        f"on {row['train_rows']:,} rows of SQuAD v1.1, a fifth of its training data, in {row['steps']:,} steps "
        f"({row['seconds'] / 60:.0f} min), seed {row['seed']}. Loss: {row['accuracy_drop']:.2f} F1."
    )
    return captioned(lines, caption, source_line(data))


def step_cost(data: dict) -> str:
    """What a step costs."""
    if "step" not in data:
        return NOT_YET.format(part="step")
    lines = ["| stage | time of a step |", "|---|---:|"]
    lines += [
        f"| {'first' if name == 'layers' else 'second'} | {step['median']:.2f} ({step['lower']:.2f}–{step['upper']:.2f}) |"
        for name, step in data["step"].items()
    ]
    caption = (
        "Over that of the teacher's forward pass, the student's, and its backward pass, measured in turn on the same batches; "
        "median and quartiles."
    )
    return captioned(lines, caption, source_line(data))
