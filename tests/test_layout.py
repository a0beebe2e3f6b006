"""The shape of the source: few entries, short files, simple functions, imports one way, rank searches compared in one place."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "heat_hf"
LAYERS = (
    "formats", "hardware", "encoders", "evaluation", "search", "reports", "compression", "distillation", "integrations", "cli",
)  # fmt: skip
MOST_ENTRIES, MOST_LINES, MOST_COMPLEX = 12, 350, 15
REGISTRY = PACKAGE / "search" / "ranks"
RANK_SEARCHES = {"uniform", "pareto", "sensitivity", "supernet", "tensorly", "manual", "random"}

BRANCHES = (ast.If, ast.For, ast.While, ast.ExceptHandler, ast.IfExp, ast.comprehension, ast.Assert)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def sources(*folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def where(file: Path, node: ast.AST) -> str:
    return f"{file.relative_to(ROOT)}:{node.lineno}"  # type: ignore[attr-defined]


def test_few_entries_at_the_root() -> None:
    entries = {file.name for file in PACKAGE.iterdir() if file.name != "__pycache__"}
    assert entries == {*LAYERS, "__init__.py", "py.typed"}
    assert len(entries) <= MOST_ENTRIES


def test_no_file_is_long() -> None:
    files = sources("heat_hf", "benchmarks", "recipes", "tests")
    lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in files}
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES} == {}


def complexity(function: ast.AST) -> int:
    """1, and 1 for every branch and for every further operand of a boolean expression."""
    nodes = list(ast.walk(function))
    return 1 + sum(isinstance(n, BRANCHES) for n in nodes) + sum(len(n.values) - 1 for n in nodes if isinstance(n, ast.BoolOp))


def test_complexity_counts_branches() -> None:
    text = "def f(a, b):\n  assert a\n  return [x for x in a if x and b and not a] if a or b else [a for a in b]"
    assert complexity(ast.parse(text).body[0]) == 1 + 1 + 1 + 2 + 2 + 1


def test_no_function_is_complex() -> None:
    counted = {
        f"{where(file, node)} {node.name}": complexity(node)
        for file in sources("heat_hf", "benchmarks", "recipes")
        for node in ast.walk(tree_of(file))
        if isinstance(node, FUNCTIONS)
    }
    assert {name: count for name, count in counted.items() if count > MOST_COMPLEX} == {}


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(file: Path) -> Iterator[tuple[ast.AST, list[str]]]:
    """Every import of a file, at run time, for types or inside a function: candidates for the module it is of, best last."""
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            yield from ((node, [alias.name]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{where(file, node)}: a relative import"
            yield from ((node, [str(node.module), f"{node.module}.{alias.name}"]) for alias in node.names)


@cache
def import_graph() -> dict[str, dict[str, str]]:
    """Module → module it imports → where."""
    modules = {module_name(file): file for file in sources("heat_hf")}
    graph: dict[str, dict[str, str]] = {name: {} for name in modules}
    for name, file in modules.items():
        for node, candidates in imported(file):
            for target in [candidate for candidate in candidates if candidate in modules][-1:]:
                graph[name].setdefault(target, where(file, node))
    return graph


def circles(graph: dict[str, dict[str, str]]) -> list[list[str]]:
    """Strongly connected components of more than one module, and modules that import themselves."""
    reach: dict[str, set[str]] = {}
    for start in graph:
        seen: set[str] = set()
        stack = list(graph[start])
        while stack:
            name = stack.pop()
            if name not in seen:
                seen.add(name)
                stack.extend(graph[name])
        reach[start] = seen
    return sorted({tuple(sorted(b for b in graph if b in reach[a] and a in reach[b])) for a in graph if a in reach[a]})  # type: ignore[arg-type]


def test_circles_are_found() -> None:
    assert circles({"a": {"b": ""}, "b": {"c": ""}, "c": {"b": ""}, "d": {"d": ""}}) == [("b", "c"), ("d",)]


def test_no_import_circles() -> None:
    assert circles(import_graph()) == []


def test_imports_point_one_way() -> None:
    level = {name: number for number, name in enumerate(LAYERS)}
    upward = [
        f"{place} imports {target}"
        for name, targets in import_graph().items()
        for target, place in targets.items()
        if name != "heat_hf" and target != "heat_hf" and level[target.split(".")[1]] > level[name.split(".")[1]]
    ]
    assert upward == []


def literals(node: ast.AST) -> set[object]:
    return {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}


def test_rank_searches_are_compared_in_their_registry_alone() -> None:
    """A method is an object of `heat_hf.search.ranks`; its name is what users write, and nothing to decide by."""
    compared = [
        f"{where(file, node)}: {ast.unparse(node)}"
        for file in sources("heat_hf")
        if REGISTRY not in file.parents
        for node in ast.walk(tree_of(file))
        if isinstance(node, ast.Compare) and RANK_SEARCHES & literals(node)
    ]
    assert compared == []
