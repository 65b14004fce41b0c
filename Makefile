# make demo   train, evaluate and keep a ShiftViT on real CIFAR-10
# make check   lint, types and the tests that take about a second or less each: two minutes, for daily use
# make test   lint, types and all tests: what gates a change
# WORKERS=1 runs the tests in so many processes; by default two.
# make bench   the short measurements of speed, into benchmarks/results and docs/performance.md
# make bench-export   every export format and precision, measured, into benchmarks/results and docs/export.md
# make docs   the site of the documentation, into site/
# make dist   the wheel and the source archive, into dist/
# BACKEND=jax or BACKEND=tensorflow chooses another Keras backend than torch for the demo.

PYTHON ?= python3
BACKEND ?= $(or $(KERAS_BACKEND),torch)
VENV := .venv
BIN := $(VENV)/bin
# A file's tests stay together; conftest.py puts the longest files first.
WORKERS ?= 2
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo check test lint bench bench-export docs dist clean

demo: $(VENV)/.ready-$(BACKEND)
	KERAS_BACKEND=$(BACKEND) $(BIN)/shiftvit train --recipe quick

check: $(VENV)/.ready-test lint
	$(PYTEST) -m "not slow"

test: $(VENV)/.ready-test lint
	$(PYTEST)

bench: $(VENV)/.ready-test
	KERAS_BACKEND=torch $(BIN)/python benchmarks/shift.py
	KERAS_BACKEND=torch $(BIN)/python benchmarks/steps.py keras_example
	KERAS_BACKEND=torch $(BIN)/python benchmarks/steps.py keras_example --set dropout=0 drop_path=0
	KERAS_BACKEND=torch $(BIN)/python benchmarks/choices.py
	$(BIN)/python benchmarks/predict.py
	$(BIN)/python benchmarks/document.py

bench-export: $(VENV)/.ready-test
	$(BIN)/python benchmarks/exports.py

docs: $(VENV)/.ready-docs
	$(BIN)/sphinx-build --fail-on-warning --keep-going -d build/docs/doctrees docs site

lint: $(VENV)/.ready-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "shiftvit needs Python 3.11 or later; name one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.ready-%: pyproject.toml constraints.txt | $(VENV)/.made
	$(PIP) --editable '.[$*]'
	@touch $@

$(VENV)/.ready-test: pyproject.toml constraints.txt | $(VENV)/.made
	$(PIP) --editable '.[torch,jax,tensorflow,tensorboard,export,test]'
	@touch $@

dist: $(VENV)/.ready-test
	rm -rf dist
	$(BIN)/python -m build --no-isolation

clean:
	rm -rf $(VENV) build dist site .mypy_cache .ruff_cache .pytest_cache
