# Every target makes the environment by itself: `make demo` on a fresh clone is all.
#   make demo        text to a served, better model (DEMO=short: every stage, fewer steps; SEED=1: another seed)
#   make serve       serve the demo's model over HTTP
#   make test        the tests; test-slow: the long ones; lint; doctor; clean
#   make bench       beside TRL on this machine: hours, on idle cores (ROWS="sft dpo": some rows)

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

BIN := .venv/bin
READY := .venv/.ready
SHORT := $(filter short,$(DEMO))
CONFIG := jobs/configs/demo$(if $(SHORT),_short).yaml
OVERRIDES := $(if $(SEED),run.seed=$(SEED) run.name=demo$(if $(SHORT),-short)-seed$(SEED))

export PATH := $(CURDIR)/$(BIN):$(PATH)
export RAY_USAGE_STATS_ENABLED := 0
export VLLM_NO_USAGE_STATS := 1
export DO_NOT_TRACK := 1
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: help demo serve test test-slow bench lint doctor data venv clean

help:
	@sed -n 's/^#   //p' Makefile

demo: $(READY) data
	rayrlhf pipeline $(CONFIG) $(OVERRIDES)

serve: $(READY)
	rayrlhf serve jobs/configs/serve.yaml

test: $(READY) data
	python -m pytest -m "not slow"

test-slow: $(READY) data
	python -m pytest -m slow

bench: $(READY) data
	python -m benchmarks.peers $(ROWS)

lint: $(READY)
	ruff check .
	ruff format --check .
	mypy

doctor: $(READY)
	rayrlhf doctor

# The demo's data, into $$RAYRLHF_CACHE; quick when they are there.
data: $(READY)
	@python -m rayrlhf.data.fetch

venv: $(READY)

# --no-deps: the lock is complete, and leaves out CUDA builds that would break the CPU torch.  After the first of these
# lines torch alone is left of it (.ci/hashes).
# --no-build-isolation: setuptools is in the lock.  Few retries: an index out of reach costs seconds.
$(READY): requirements-cpu.lock requirements-cpu.hashes pyproject.toml
	@command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || { \
	  echo "error: no C++ compiler, DeepSpeed needs one: apt-get install g++ (Debian, Ubuntu), dnf install gcc-c++ (Fedora)" >&2; exit 1; }
	@PATH="$${PATH#$(CURDIR)/$(BIN):}"; found=; for python in $(PYTHON) python3.11 python3.12 python3; do \
	  if $$python -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; \
	  then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "error: no Python 3.11 or 3.12 with venv found: apt-get install python3.11-venv, or make PYTHON=/path/to/python3.11" >&2; \
	  exit 1; \
	fi; \
	if ! $(BIN)/python -c 'import pip' 2>/dev/null; then $$found -m venv --clear .venv; fi
	@echo "installing into .venv: 3 minutes and 4 GB the first time"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --retries 1 --require-hashes -r requirements-cpu.hashes
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --retries 1 -r requirements-cpu.lock
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

clean:
	rm -rf .venv build dist rayrlhf.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "removed the environment and caches; runs/ and the data cache ($${RAYRLHF_CACHE:-~/.cache/rayrlhf}) stay"
