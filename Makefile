# Everything runs from a fresh clone on Debian 12 or newer, as root or with sudo: each target sets
# up what it needs first, and the second time that costs next to nothing.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

# The lab's root, where it can be built; without it the tests that need it are skipped and counted,
# except in CI, where they fail.
define lab_root
@if [ "$$(id -u)" = 0 ]; then $(BIN)/vmm-msi lab root || [ "$$CI" != true ]; \
else echo "not root: no lab root, tests that need it are skipped" >&2; fi
endef

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup setup-test lint test bench demo clean

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install missing system packages and keep .venv in step with pyproject.toml
	@PYTHON=$(PYTHON) scripts/setup run

setup-test:
	@PYTHON=$(PYTHON) scripts/setup run test

lint: setup ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

test: setup-test lint ## lint, then every test; builds the lab's root when there is none
	$(lab_root)
	@$(BIN)/pytest $(PYTEST_ARGS)

bench: setup-test ## time the commands and the model
	$(lab_root)
	@$(BIN)/python tests/bench/bench.py

demo: setup ## show what the strategies do
	@scripts/demo

clean: ## remove .venv and what the tools left here; the lab's cache stays
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
