# Everything runs from a fresh clone on Debian 12 or newer, as root or with sudo: each target sets
# up what it needs first, and the second time that costs next to nothing.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

# What the lab is made of, where it can be built: about 10 minutes the first time. Without it the
# tests that need it are skipped and counted, except in CI, where they fail.
define lab_images
@if [ "$$(id -u)" = 0 ]; then $(BIN)/vmm-msi lab build || [ "$$CI" != true ]; \
else echo "not root: no lab, tests that need it are skipped" >&2; fi
endef

# Older releases of libvirt, which the tests define guests on: half a minute each the first time.
define lab_roots
@if [ "$$(id -u)" = 0 ]; then for suite in bookworm trixie; do \
$(BIN)/vmm-msi lab root --suite $$suite >/dev/null || [ "$$CI" != true ] || exit 1; done; fi
endef

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup setup-test lint test lab lab-guest bench boards fuzz demo clean

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install missing system packages and keep .venv in step with pyproject.toml
	@PYTHON=$(PYTHON) scripts/setup run

setup-test:
	@PYTHON=$(PYTHON) scripts/setup run test lab

lint: setup ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

test: setup-test lint ## lint, then every test; builds the lab when there is none
	$(lab_images)
	$(lab_roots)
	@$(BIN)/pytest $(PYTEST_ARGS)

lab: setup-test ## the strategies and the model against the real kernel of an emulated Arm host
	@$(BIN)/vmm-msi lab build
	@$(BIN)/pytest -q tests/lab/test_real_kernel.py
	@$(BIN)/python tests/bench/lab.py

lab-guest: setup-test ## real guests behind nested SMMUs in the emulated Arm host, in every shape
	@$(BIN)/vmm-msi lab build
	@$(BIN)/pytest -q tests/lab/test_guest.py tests/lab/guest_shapes.py

bench: setup-test ## time the commands, the model, the editing of domain XML, the reading of firmware
	$(lab_images)
	@$(BIN)/python tests/bench/bench.py
	@$(BIN)/python tests/bench/cycles.py
	@$(BIN)/python tests/bench/domxml.py
	@PYTHONPATH=tests $(BIN)/python -m bench.topology

boards: setup-test ## what the boards have that Debian's arm64 kernel runs on, from its device trees
	@PYTHONPATH=tests $(BIN)/python -m host.firmware.boards

fuzz: setup-test ## the readers of data from outside against any bytes, for FUZZ_SECONDS (60)
	@PYTHONPATH=tests $(BIN)/python -m fuzz.run

demo: setup ## show what the strategies do
	@scripts/demo

clean: ## remove .venv and what the tools left here; the lab's cache stays
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
