# Two targets for a stranger: `make run` and `make test`. Each sets up what it needs, once.
PYTHON ?= python3
BIN := .venv/bin
BUNDLE := rego
# Most of a test's time is waiting for what it started. A file's tests stay together, because they share what they start.
PYTEST = $(BIN)/pytest -q -n 3 --dist loadfile $(or $(ARGS),tests --ignore=tests/e2e)
UNCOMPILED = bench test_docs.py test_wheel.py $(addprefix runtime/,attribution eviction routing sim telemetry vllm workload)

.DEFAULT_GOAL := help
# What .ci/opa.py has built is found as if it were installed.
export PATH := $(CURDIR)/build/bin:$(PATH)
.PHONY: help setup redis opa run compile test compiled check e2e soak load bench clean

help: ## list the targets
	@sed -n 's/^\([a-z0-9]*\):.*## \(.*\)/\1	\2/p' Makefile | expand -t 10

setup: ## make .venv from requirements-dev.lock; the other targets do it by themselves
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed: Bursar needs Python 3.11 or newer." >&2; exit 3; }
	@$(PYTHON) .ci/environment.py

redis: setup # the tests' own: found, or as root installed
	@$(BIN)/python .ci/redis.py

opa: setup ## opa and regal for the policies: found, or built where Go is; `check` uses them, and `e2e` needs them
	@$(BIN)/python .ci/opa.py

run: setup ## serve with demo traffic and its ledger report; ARGS=--once exits after the report
	@$(BIN)/bursar up --demo $(ARGS)

compile: setup ## compile what each request passes through, where there is a C compiler; `run` uses what is compiled
	@$(BIN)/python .ci/compile.py

test: setup redis ## run every test that needs nothing but this machine, as Python; ARGS=tests/ledger for some
	BURSAR_COMPILED=0 $(PYTEST)

compiled: compile redis ## the same tests on what is compiled, but for those in which nothing of it takes part
	@if [ -e build/compiled/sources.sha256 ]; then BURSAR_COMPILED=1 $(PYTEST) $(UNCOMPILED:%=--ignore=tests/%); \
	else echo "Nothing is compiled: make test has run all there is."; fi

check: setup ## lint, types, layers, policies and the shipped configuration
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bursar policy check --bundle $(BUNDLE)
	$(BIN)/bursar policy test --bundle $(BUNDLE)
	$(BIN)/bursar config check --config gateway/demo.yaml

e2e: compile redis opa ## real traffic through vLLM on CPU (its own environment, 5 GB, on the first run)
	$(BIN)/python tests/e2e/vllm_environment.py
	$(BIN)/pytest -q tests/e2e

soak: setup redis ## kill and simulate far longer than the tests do: SEEDS=10000 KILLS=5000 WHOLE_KILLS=200 EXAMPLES=2000
	BURSAR_COMPILED=0 BURSAR_SEEDS=$(or $(SEEDS),10000) BURSAR_KILLS=$(or $(KILLS),5000) BURSAR_WHOLE_KILLS=$(or $(WHOLE_KILLS),200) \
	BURSAR_EXAMPLES=$(or $(EXAMPLES),2000) \
	$(BIN)/pytest -q tests/simulation tests/ledger/test_journal_kills.py tests/ledger/test_shared_book_model.py tests/e2e/test_whole_killed.py

load: compile ## half a minute of Locust against an instance of its own; every account must agree at the end
	$(BIN)/python -m tests.load.run

bench: compile redis opa ## measure against references in the same run; ONLY=name for one row
	$(BIN)/python -m bench --only "$(ONLY)"

clean: ## remove environments, caches and build results; the home .bursar/ stays
	rm -rf .venv .venv-vllm .venv-litellm build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
