# Everything runs from a fresh clone on Debian 12 or newer, as root or with sudo: each target sets
# up what it needs first, and the second time that costs next to nothing.

PYTHON ?= python3
# The releases that .venv gets; LOCK= for the newest ones.
LOCK   := scripts/locked
VENV   := .venv
BIN    := $(VENV)/bin
SETUP  := PYTHON=$(PYTHON) LOCK=$(LOCK) scripts/setup
# On as many processors as there are.
PYTEST_QUICK := $(BIN)/pytest -m "not lab_root" --numprocesses auto --maxprocesses 8
# Two files at a time, since an emulated host keeps little more than one processor busy.
PYTEST_LAB   := $(BIN)/pytest -m lab_root --numprocesses 2 --dist loadfile --no-loadscope-reorder

# What the lab is made of, where it can be built: kernels, a QEMU, and Debian roots, those of older
# suites for their releases of libvirt. The parts are built beside each other, since each waits for
# the network or uses one processor for a while. Without the lab the tests that need it are skipped
# and counted, except in CI, where they fail.
PARTS := part-kernels part-qemu part-root-bookworm part-root-trixie
define lab_parts
@if [ "$$(id -u)" = 0 ]; then \
TERM=dumb $(MAKE) --no-print-directory --keep-going --jobs $(PARTS) || [ "$$CI" != true ]; \
else echo "not root: no lab, tests that need it are skipped" >&2; fi
endef

# Which part of how many runs, and how long it takes on 2 processors.
part = @echo "make $@: $(1)"

# The tests start hundreds of processes, which import the same modules.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
ifeq ($(filter part-%,$(MAKECMDGOALS)),)
.NOTPARALLEL:
endif
.PHONY: help setup setup-test lock lint check test lab lab-speed lab-guest lab-kernel-debug lab-64k
.PHONY: bench boards fuzz demo clean $(PARTS)

help: ## show this
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install missing system packages and keep .venv in step with pyproject.toml and the lock
	@$(SETUP) run

setup-test:
	@$(SETUP) run test lab

lock: ## refresh scripts/locked, the releases that .venv gets
	@PYTHON=$(PYTHON) scripts/lock

lint: setup ## ruff, codespell and mypy
	@$(BIN)/codespell --dictionary - --dictionary scripts/codespell.txt
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

check: ## lint, types and every test that needs no lab
	$(call part,1/3 system packages and .venv (1 minute the first time))
	@$(SETUP) run check
	$(call part,2/3 lint and types (1 minute the first time))
	@$(MAKE) --no-print-directory lint
	$(call part,3/3 tests without the lab (3 minutes))
	@$(PYTEST_QUICK)

test: ## everything; as root it builds the lab first, if there is none
	$(call part,1/5 system packages and .venv (2 minutes the first time))
	@$(SETUP) run test lab
	$(call part,2/5 lint and types (1 minute the first time))
	@$(MAKE) --no-print-directory lint
	$(call part,3/5 tests without the lab (3 minutes))
	@$(PYTEST_QUICK)
	$(call part,4/5 the lab: kernels, Debian roots and a QEMU (15 minutes the first time))
	$(lab_parts)
	$(call part,5/5 tests with the lab (12 minutes))
	@$(PYTEST_LAB)

part-kernels:
	@$(BIN)/vmm-msi lab build

# It starts with QEMU, and then waits for the kernel.
part-qemu:
	@$(BIN)/vmm-msi lab build --itses --kernel stock >/dev/null

$(filter part-root-%,$(PARTS)): part-root-%:
	@$(BIN)/vmm-msi lab root --suite $* >/dev/null

lab: setup-test ## the strategies and the simulator against the real kernel of an emulated Arm host
	@$(BIN)/vmm-msi lab build
	@$(BIN)/pytest -q tests/lab/test_real_kernel.py
	@$(BIN)/python tests/bench/lab.py

lab-speed: setup-test ## random call sequences on that kernel, timed beside a bare boot
	@$(BIN)/python tests/bench/lab.py

lab-guest: setup-test ## real guests behind nested SMMUs in the emulated Arm host, in every shape
	@$(BIN)/vmm-msi lab build --itses
	@$(BIN)/pytest -q tests/lab/test_guest.py tests/lab/guest_shapes.py \
		tests/lab/guest_life.py

# The kernel takes half an hour to compile the first time.
lab-kernel-debug: setup-test ## the kernel patches under lockdep, KASAN and UBSAN: selftests, random calls
	@$(BIN)/vmm-msi lab build --kernel debug
	@$(BIN)/pytest -q tests/lab/kernel_debug.py

lab-64k: setup-test ## the simulator against the patched kernel with 64K pages
	@$(BIN)/vmm-msi lab build --kernel bind --granule 64K
	@$(BIN)/pytest -q tests/lab/kernel_64k.py

bench: setup-test ## time the commands, the simulator, the editing of domain XML, firmware, pages
	$(lab_parts)
	@$(BIN)/python tests/bench/bench.py
	@$(BIN)/python tests/bench/cycles.py
	@$(BIN)/python tests/bench/domxml.py
	@$(BIN)/python tests/bench/doctor.py
	@PYTHONPATH=tests $(BIN)/python -m bench.topology
	@PYTHONPATH=tests $(BIN)/python -m bench.pages

boards: setup-test ## what the boards have that Debian's arm64 kernel runs on, from its device trees
	@PYTHONPATH=tests $(BIN)/python -m host.firmware.boards

fuzz: setup-test ## the readers of data from outside against any bytes, for FUZZ_SECONDS (60)
	@PYTHONPATH=tests $(BIN)/python -m fuzz.run

demo: setup ## show what the strategies do
	@scripts/demo

clean: ## remove .venv and what the tools left here; the lab's cache stays
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
