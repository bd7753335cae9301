# Shortcuts. `make` alone lists them; variables: make train ARGS="trainer.max_steps=100"
.DEFAULT_GOAL := help
.PHONY: help setup train test test-parity lint types ci bench
ARGS ?=

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "%-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install gpt2x with what tests and comparisons need, in the active environment
	pip install -e ".[test,parity]"

train: ## the default run: gpt2_tiny learns CPython's documentation
	python train.py $(ARGS)

test: ## all tests; those that lack a package or data are skipped by name
	pytest $(ARGS)

test-parity: ## only the comparisons with transformers on PyTorch
	pytest -m parity $(ARGS)

lint: ## ruff: rules and format
	ruff check .
	ruff format --check .

types: ## mypy on the typed part
	mypy

ci: ## everything, in a fresh environment (about 20 minutes)
	.ci/run

bench: ## training speed against transformers on PyTorch, into outputs/bench_train.json
	mkdir -p outputs && python benchmarks/train.py --out outputs/bench_train.json $(ARGS)
