# Everything runs from .venv; `make setup` makes it, and is quick when it is up to date.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.setup-done
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types format check bench bench-cli

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## make .venv with .venv/bin/deployer

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'error: $(PYTHON) is older than 3.11: make setup PYTHON=python3.11' >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { apt-get update -qq && apt-get install -y -qq python3-venv && $(PYTHON) -m venv .venv; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: setup  ## deploy, break and roll back the sample app under load (under a minute)
	@$(BIN)/python -m sample_app.demo

test: setup  ## all tests: the fast ones, then real processes, four at a time since they mostly wait, long ones first; then those that need the machine
	$(BIN)/pytest tests/unit -q -n 2
	$(BIN)/pytest tests --ignore=tests/unit -q -n 4 --dist load --maxschedchunk 1 -m 'not serial'
	$(BIN)/pytest tests --ignore=tests/unit -q -m serial || [ $$? -eq 5 ]  # 5: none is marked serial

lint: setup  ## ruff, formatting and the layers of the architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: setup  ## mypy
	$(BIN)/mypy

format: setup  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: lint types  ## lint, types and the fast tests
	$(BIN)/pytest tests/unit -q -n 2

bench: setup  ## rollouts beside gunicorn, uvicorn, granian, PM2 and uWSGI; rollbacks; preload; saves; staging; requests/s; fairness; memory, idle CPU
	$(BIN)/python -m tests.bench

bench-cli: setup  ## how long the quick commands take
	$(BIN)/python -m tests.bench.cli
