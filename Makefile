# Everything that a checkout does. Needs Python >= 3.11 and make; sets up its own .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Embedded default of the demo; override on the command line: make demo DEMO=/tmp/demo
DEMO ?= demo
MODELS := color_stats,nuclear_texture,vit_random

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast lint fmt type bench clean

help:  ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; found $$($(PYTHON) --version). Set PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: setup.cfg constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-test: setup.cfg constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@ $(VENV)/.installed

demo: $(VENV)/.installed  ## Synthetic tiles -> three encoders -> robustness index -> report
	$(BIN)/python -m experiments.synthesize --output=$(DEMO)/tiles --overwrite
	$(BIN)/python -m experiments.extract --model=$(MODELS) --tileset=$(DEMO)/tiles \
	  --dataset=synthetic --output=$(DEMO)/embeddings
	$(BIN)/python -m experiments.evaluate --output=$(DEMO)/results --k=61 \
	  --metrics=robustness_index,margins,probes \
	  --embeddings=$(DEMO)/embeddings/color_stats,$(DEMO)/embeddings/nuclear_texture,$(DEMO)/embeddings/vit_random
	$(BIN)/python -m experiments.report --results=$(DEMO)/results --output=$(DEMO)/report
	@echo "Report: $(abspath $(DEMO))/report/index.html"

test: $(VENV)/.installed-test  ## All tests
	$(BIN)/python -m pytest

test-fast: $(VENV)/.installed-test  ## Tests under three minutes
	$(BIN)/python -m pytest -m "not slow"

lint: $(VENV)/.installed-test  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

fmt: $(VENV)/.installed-test  ## Format and sort imports
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: $(VENV)/.installed-test  ## mypy
	$(BIN)/mypy

bench: $(VENV)/.installed-test  ## Benchmarks beside their peers, one JSON line each
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python -m experiments.benchmarks.neighbors --task=search
	$(BIN)/python -m experiments.benchmarks.neighbors --task=robustness_index
	$(BIN)/python -m experiments.benchmarks.neighbors --task=all
	$(BIN)/python -m experiments.benchmarks.apd
	$(BIN)/python -m experiments.benchmarks.clustering
	$(BIN)/python -m experiments.benchmarks.extraction

clean:  ## Remove the virtual environment and the demo
	rm -rf $(VENV) demo
