# Every command that a user or developer of Fastlane needs; `make help` lists them.

SHELL := /bin/sh
PYTHON ?= python3
# What `test-core` runs.
CORE_TESTS ?= tests
# Processes that run tests side by side; PARALLEL= runs them one after the other.
PARALLEL ?= -n 3
BIN := .venv/bin
PACKAGES := -e . -e plugins/fastlane_docker

.DEFAULT_GOAL := help
.PHONY: help bench chaos demo test test-long test-core lint format services wheels clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.venv/.ready: pyproject.toml plugins/fastlane_docker/pyproject.toml constraints.txt deploy/make_environment.sh
	@PYTHON=$(PYTHON) sh deploy/make_environment.sh
	@$(BIN)/uv pip install --quiet --constraint constraints.txt --group dev $(PACKAGES)
	@touch $@

demo: .venv/.ready ## Run a hello-world job and go on serving until Ctrl-C (ONCE=1 ends after the job)
	@ONCE=$(ONCE) sh deploy/demo.sh

services: .venv/.ready ## Install the real servers that the tests need (as root, on Debian)
	@$(BIN)/python -m tests.services install

chaos: .venv/.ready services ## Kill, pause and rob everything for minutes while jobs run (ARGUMENTS="--seed 7 --jobs 300")
	$(BIN)/python -m tests.chaos $(ARGUMENTS)

bench: .venv/.ready services ## Measure all, against floors in the same run (BENCH=submit|bulk|schedules|queue|history|hung_engine|throughput: one)
	$(BIN)/python -m benchmarks$(if $(BENCH),.$(BENCH)) $(ARGUMENTS)

lint: .venv/.ready ## Check style, types and import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.ready ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: lint services ## Check everything; skipped tests are listed at the end with their reasons
	$(BIN)/python -m pytest $(PARALLEL) $(TESTS)

test-long: lint services ## Run the proofs that take minutes and that `make test` leaves out
	$(BIN)/python -m pytest $(TESTS) -m long

test-core: .venv/.ready ## Run the tests of core with no plugin installed, in .venv-core
	@test -x .venv-core/bin/python || $(PYTHON) -m venv .venv-core
	@$(BIN)/uv pip install --quiet --python .venv-core/bin/python --constraint constraints.txt --group dev -e .
	.venv-core/bin/python -m pytest $(PARALLEL) $(CORE_TESTS) -m "not services"

wheels: .venv/.ready ## Build the wheels of every distribution into dist/
	rm -rf dist
	$(BIN)/uv build --quiet --wheel --out-dir dist .
	$(BIN)/uv build --quiet --wheel --out-dir dist plugins/fastlane_docker

clean: ## Remove the environment and everything built
	rm -rf .venv .venv-core dist build .mypy_cache .ruff_cache .pytest_cache
