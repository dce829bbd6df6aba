PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
# pytest-xdist workers share the cores: one computing thread each keeps them from fighting over them.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
# Neighbouring tests share fixtures and references, so each worker takes half of the suite and then helps the other.
PYTEST := $(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist worksteal -q
# A process that keeps nothing compiled takes seconds to import torch, and tests start many: keep it, out of the tree.
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX := $(CURDIR)/$(VENV)/pycache

.DEFAULT_GOAL := help
.PHONY: help demo test slow test-deep mutants check bench bench-compare bench-save clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	# of the pip that Python brings, few know dependency groups
	$(BIN)/python -m pip install --no-compile -q 'pip>=25.1'
	$(BIN)/python -m pip install --no-compile -q -c constraints.txt -e . --group dev
	# the first two ask for torchvision, which their samplers do not use, and torchode for a typeguard of 2021, by way of
	# torchtyping, of which it uses names only; the extra has what they do use
	$(BIN)/python -m pip install --no-compile -q -c constraints.txt --no-deps azula k-diffusion torchode torchtyping typeguard
	@touch $@

demo: $(STAMP) ## sample handwritten digits with every method; pictures and a table in demo-output/
	$(BIN)/sdegen demo --out demo-output --seed 0

test: $(STAMP) ## run the tests (those marked slow excepted)
	$(PYTEST)

slow: $(STAMP) ## run the statistical and soak tests
	$(PYTEST) -m slow

test-deep: $(STAMP) ## run all tests, with ten times the generated cases, and those that assertions off must not change
	SDEGEN_TESTS=deep $(PYTEST) -m "slow or not slow"
	$(ONE_THREAD) $(BIN)/python -O -m pytest -n 2 --dist worksteal -q

mutants: $(STAMP) ## plant faults and print which property catches each
	cd tests && $(ONE_THREAD) ../$(BIN)/python -m mutation.catalogue

check: $(STAMP) ## lint, formatting, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

SPEED := $(ONE_THREAD) $(BIN)/python -m pytest benchmarks --benchmark-only --benchmark-quiet -q --ratios

bench: $(STAMP) ## measure speed beside the peers; print ratios
	$(SPEED) .benchmarks/latest.json

bench-compare: bench ## measure, and say what got slower since the stored baseline
	$(BIN)/python -m benchmarks.compare

bench-save: $(STAMP) ## measure, store the baseline and write docs/speed.md
	$(SPEED) benchmarks/baseline.json
	$(BIN)/python -m benchmarks.compare --write

clean: ## remove the environment, caches and outputs
	rm -rf $(VENV) demo-output dist build .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
