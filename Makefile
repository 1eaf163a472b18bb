# `make help` lists what there is to do. Everything is installed into $(VENV), with the versions of constraints.txt.
# Where the CPU is all there is, the CPU build of PyTorch is far smaller (and so for the build of another GPU):
#   make quickstart TORCH_INDEX=https://download.pytorch.org/whl/cpu

VENV ?= .venv
BIN := $(VENV)/bin
# The first Python here that is new enough; name another with `make install PYTHON=/path/to/python3`.
PYTHON ?= $(firstword $(foreach python,python3 python3.14 python3.13 python3.12 python3.11,\
	$(shell $(python) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(python))))
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
TORCH_INDEX ?=
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install quickstart test check lint types layers format bench clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*  ## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

install: $(VENV)/.installed  ## install mmrec and what training and serving need into .venv (again when versions change)

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "MM-Rec needs Python 3.11 or newer, and none was found." \
		"Install one, or name it: make install PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment." \
		"On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing into $(VENV); the first time this takes a few minutes (PyTorch is large)."
	$(if $(TORCH_INDEX),$(PIP_INSTALL) --no-deps --index-url '$(TORCH_INDEX)' torch)
	$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing what the tests and checks need as well."
	$(PIP_INSTALL) --editable '.[dev]'
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	@echo "Installing what the benchmarks compare with as well."
	$(PIP_INSTALL) --editable '.[dev,bench]'
	@touch $@

quickstart: install  ## from raw text to a small model that answers, in a few minutes
	$(BIN)/mmrec quickstart

test: $(VENV)/.installed-dev  ## run the tests (PYTEST_ARGS='tests/data -x' for a part of them)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: lint types layers  ## ruff, mypy and the order of the layers

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy --strict mm_rec
	$(BIN)/mypy --strict --platform win32 --cache-dir .mypy_cache/windows mm_rec  # nothing that Windows lacks

layers: $(VENV)/.installed-dev
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev  ## let ruff sort imports and lay out the code
	$(BIN)/ruff check --select I --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-bench  ## a first look at every benchmark (each has a longer form: see bench/RESULTS.md)
	@set -e; for script in bench/*.py; do \
		echo "== $$script"; $(BIN)/python "$$script" --quick; done

clean:  ## remove what was installed and cached; runs and data stay
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .coverage
	find mm_rec tests bench -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
