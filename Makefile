# One environment, .venv, made on first use and reused until pyproject.toml changes. Needs Python >= 3.12 and make, nothing else.
#   make demo      set up, then stream an answer from the demo model through the real engine
#   make test      set up, then run the tests
#   make check     format, lint, types, layout, tests: what CI runs
#   make format    rewrite the sources in the one format, and docs/architecture.md's list of files
#   make nightly   the long tests
#   make page      the server's web page in a real browser, if there is a Chromium
#   make clients   clients that others wrote against the server, each in an environment of its own (CLIENTS="litellm lm-eval": these)
# WORKERS=N runs that many tests side by side (2), each with a jax of its own.
# PYTHON=/path/to/python3 picks the interpreter, VENV=folder another environment.

VENV ?= .venv
PYTHON ?=
WORKERS ?= 2
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet --quiet
# A file's tests stay together: they share what the file compiled.
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile
SOURCES := .ci sarathi_jax kernels models serve tests benchmarks examples

# Two installs side by side would write into one environment.
.NOTPARALLEL:
.PHONY: help demo test check format lint types layout nightly page clients clean

help:
	@sed -n 's/^#   //p' Makefile

DEMO_PROMPT ?= Why are prompts split into chunks?

demo: $(VENV)/.ready-demo
	@echo "starting the engine (its first start compiles its programs, the next ones find them on disk)"
	$(BIN)/sarathi-jax generate demo --chat --stream --stats --temperature 0 --max-tokens 64 \
		--max-num-seqs 8 --token-budget 256 --prompt "$(DEMO_PROMPT)"

test: $(VENV)/.ready-test
	$(PYTEST)

nightly: $(VENV)/.ready-test
	$(BIN)/python -m pytest -m nightly --hypothesis-profile=nightly

check: lint types layout
	$(PYTEST) --ignore=tests/test_layout.py

lint: $(VENV)/.ready-dev
	$(BIN)/ruff format --check $(wildcard $(SOURCES))
	$(BIN)/ruff check $(wildcard $(SOURCES))

types: $(VENV)/.ready-dev
	$(BIN)/pyright

layout: $(VENV)/.ready-test
	$(BIN)/python -m pytest tests/test_layout.py

format: $(VENV)/.ready-dev
	$(BIN)/ruff check --fix $(wildcard $(SOURCES))
	$(BIN)/ruff format $(wildcard $(SOURCES))
	$(BIN)/python .ci/list_files.py

page: $(VENV)/.ready-dev
	$(BIN)/python -m pytest tests/serve/page

# Installs much and asks the package index: no part of the tests.
clients: $(VENV)/.ready-demo
	$(BIN)/python tests/clients/run.py $(CLIENTS)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis

# ---- the environment ----

# Made in one go or made again: an interrupted `venv` leaves a python without pip behind.
$(VENV)/.made:
	@python=$$(sh .ci/find-python $(PYTHON)) || exit 1; \
	echo "making $(VENV) with $$python"; \
	"$$python" -m venv $(VENV) || { echo "On Debian and Ubuntu, venv is a package of its own: apt install python3-venv" >&2; rm -rf $(VENV); exit 1; }; \
	touch $@

$(VENV)/.ready-demo: pyproject.toml | $(VENV)/.made
	@echo "installing sarathi-jax into $(VENV) (a minute the first time)"
	@$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.ready-test: pyproject.toml | $(VENV)/.made
	@echo "installing sarathi-jax and what its tests need into $(VENV) (a minute the first time)"
	@$(PIP_INSTALL) --editable '.[test]'
	@touch $@ $(VENV)/.ready-demo

$(VENV)/.ready-dev: pyproject.toml | $(VENV)/.made
	@echo "installing sarathi-jax, what its tests need and the development tools into $(VENV) (a minute the first time)"
	@$(PIP_INSTALL) --editable '.[dev]'
	@touch $@ $(VENV)/.ready-test $(VENV)/.ready-demo
