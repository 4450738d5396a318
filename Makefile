# Each target does all of its own set-up; a second run with nothing changed installs nothing.
#
#   make demo          a federated run on real digits, nothing to download but the Python packages
#   make test          the tests
#   make slow          the tests that take more than half a minute, and the laws on four times as many examples
#   make check         what CI asks for besides the demo: lint, types, imports, tests
#   make site          the documentation as web pages, in site/; a broken link is an error
#
# Knobs: PYTHON=python3.12           the interpreter that makes .venv (3.11 or newer)
#        TORCH_INDEX=https://download.pytorch.org/whl/cpu
#                                    take torch's small CPU build (on Linux the default index serves the CUDA build)
#        INDEX=https://...           another package index
#        ARGS="..."                  further arguments of `fedquilt demo` or of pytest

VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
       $(if $(INDEX),--index-url $(INDEX)) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
CANDIDATES := $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python3.14 python)

.DEFAULT_GOAL := help
.PHONY: help demo test slow lint check site format clean

help:
	@sed -n '3,/^$$/s/^# \{0,1\}//p' Makefile

demo: $(VENV)/.runtime
	$(BIN)/fedquilt demo $(ARGS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder $(ARGS)

slow: $(VENV)/.dev
	HYPOTHESIS_PROFILE=thorough $(BIN)/python -m pytest -m "slow or hypothesis" $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test

# Not --quiet: then no warning would be counted, and none be an error.
site: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir site
	@echo "the documentation: site/index.html; with search: $(BIN)/mkdocs serve"

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: newer pyproject.toml or constraints.txt means install again.
$(VENV)/.runtime: pyproject.toml constraints.txt | $(VENV)/.created
	@echo "installing fedquilt into $(VENV) (some minutes the first time)"
	@$(PIP) --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/.created
	@echo "installing fedquilt and its development tools into $(VENV) (some minutes the first time)"
	@$(PIP) --editable '.[dev,flower]'
	@touch $(VENV)/.runtime $@

$(VENV)/.created:
	@if $(BIN)/python -m pip --version >/dev/null 2>&1; then touch $@; exit; fi; \
	for python in $(CANDIDATES); do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    $$python -c 'import ensurepip, venv' >/dev/null 2>&1 || { no_venv="$$no_venv $$python"; continue; }; \
	    echo "making $(VENV) with $$($$python --version)"; \
	    $$python -m venv $(VENV) && touch $@; exit; \
	  fi; \
	done; \
	if [ -n "$$no_venv" ]; then \
	  echo "error:$$no_venv cannot make a virtual environment: install its venv package (Debian, Ubuntu: python3-venv)" >&2; \
	else \
	  echo "error: no Python 3.11 or newer among: $(CANDIDATES). Install one, or name it: make PYTHON=/path/to/python" >&2; \
	fi; exit 1
