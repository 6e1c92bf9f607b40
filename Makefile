# Everything that a checkout does. Needs Python >= 3.11 and make; sets up its own .venv.
# Another Python beside it, with the newest of all packages:
#   make test VENV=.venv313 PYTHON=python3.13 CONSTRAINTS=
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check \
  $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
# Else every process that a test starts would compile all that it imports anew.
unexport PYTHONDONTWRITEBYTECODE
# Processes that share the tests. COLD=1: keep nothing of what XLA compiled before.
WORKERS ?= 2
COLD ?=
KEPT = $(if $(COLD),kept=$$(mktemp -d) && trap 'rm -rf "$$kept"' EXIT && JAX_COMPILATION_CACHE_DIR="$$kept")
PYTEST = $(KEPT) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# Where the demo goes; override on the command line: make demo DEMO=/tmp/demo
DEMO ?= demo

.DEFAULT_GOAL := help
.PHONY: help demo leaderboard test test-fast test-all fuzz lint fmt type docs bench accelerator \
  regression clean

help:  ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; found $$($(PYTHON) --version). Set PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

# Changes with CONSTRAINTS, whereupon all is installed again; refuses a venv of another Python.
$(VENV)/.constraints: FORCE | $(VENV)/bin/python
	@say='import sys; print("%d.%d" % sys.version_info[:2])'; \
	  wanted=$$($(PYTHON) -c "$$say") && found=$$($(BIN)/python -c "$$say") || exit 2; \
	  [ "$$found" = "$$wanted" ] || { \
	    echo "$(VENV) is of Python $$found, PYTHON=$(PYTHON) is $$wanted." \
	      "Set VENV=... to another folder, or PYTHON=python$$found." >&2; exit 2; }
	@echo '$(CONSTRAINTS)' | cmp -s - $@ || echo '$(CONSTRAINTS)' > $@

FORCE:

$(VENV)/.installed: setup.cfg $(CONSTRAINTS) $(VENV)/.constraints | $(VENV)/bin/python
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-test: setup.cfg $(CONSTRAINTS) $(VENV)/.constraints | $(VENV)/bin/python
	$(PIP) -e '.[test]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: setup.cfg $(CONSTRAINTS) $(VENV)/.constraints | $(VENV)/bin/python
	$(PIP) -e '.[docs]'
	@touch $@ $(VENV)/.installed

demo: $(VENV)/.installed  ## Synthetic tiles -> three encoders -> robustness index -> report; goes on where it stopped
	$(BIN)/python -m experiments.run --output=$(DEMO)
	@echo "Report: $(abspath $(DEMO))/report/index.html"

leaderboard: demo  ## The demo's models and the published numbers as a static site
	$(BIN)/python -m experiments.leaderboard --results=$(DEMO)/results --output=$(DEMO)/leaderboard
	@echo "Leaderboard: $(abspath $(DEMO))/leaderboard/index.html"

test: $(VENV)/.installed-test  ## All tests but long campaigns
	$(PYTEST) -m "not campaign"

test-fast: $(VENV)/.installed-test  ## Tests under three minutes
	$(PYTEST) -m "not slow and not campaign"

test-all: $(VENV)/.installed-test  ## All tests, long campaigns too, compiled as users do
	$(PYTEST) --optimized

fuzz: $(VENV)/.installed-test  ## Campaigns of odd and damaged input, at full length
	JAX_PLATFORMS=cpu PYTHONPATH=.:tests/helpers:tests/fuzz $(BIN)/python tests/fuzz/campaigns.py

lint: $(VENV)/.installed-test  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

fmt: $(VENV)/.installed-test  ## Format and sort imports
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: $(VENV)/.installed-test  ## mypy
	$(BIN)/mypy

docs: $(VENV)/.installed-docs  ## The documentation site, its tutorials run; warnings are errors
	$(BIN)/python -m sphinx -W --keep-going -q docs docs/_build/html
	@echo "Site: $(abspath docs)/_build/html/index.html"

bench: $(VENV)/.installed-test  ## Benchmarks beside their peers, one JSON line each
	$(PIP) -e '.[bench]'
	$(BIN)/python -m experiments.benchmarks.neighbors --task=search
	$(BIN)/python -m experiments.benchmarks.neighbors --task=robustness_index
	$(BIN)/python -m experiments.benchmarks.neighbors --task=all
	$(BIN)/python -m experiments.benchmarks.apd
	$(BIN)/python -m experiments.benchmarks.clustering
	$(BIN)/python -m experiments.benchmarks.combat
	$(BIN)/python -m experiments.benchmarks.stain
	$(BIN)/python -m experiments.benchmarks.extraction

# JAX finds the accelerator itself. REHEARSE=1: the same on CPU devices, at small sizes.
# STAGES=parity,neighbors: only these; OUT: where lines and logs go.
REHEARSE ?=
OUT ?= accelerator
STAGES ?=
accelerator: $(VENV)/.installed-test  ## Checks and measurements on a GPU or TPU: tests, then stages
	JAX_PLATFORMS=$(if $(REHEARSE),cpu,) REHEARSE=$(REHEARSE) $(BIN)/python -m pytest -m accelerator tests/accelerator
	$(if $(REHEARSE),JAX_PLATFORMS=cpu) $(BIN)/python -m experiments.benchmarks.accelerator --output=$(OUT) \
	  $(if $(STAGES),--stages=$(STAGES)) $(if $(REHEARSE),--rehearse --patience=5)

regression: $(VENV)/.installed-test  ## Lines of make bench (LINES=file) beside the last committed ones
	@$(BIN)/python -m experiments.benchmarks.regression --new=$(LINES)

clean:  ## Remove the virtual environment, the demo, the site and measurements
	rm -rf $(VENV) demo accelerator docs/_build
