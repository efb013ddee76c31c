# Adex. `make serve` and `make test` set everything up by themselves on a fresh machine.
.DEFAULT_GOAL := help
.PHONY: help setup system serve test check fix protos bench bench-exchange bench-gpu lock clean

BIN := .venv/bin
PORT ?= 8080
MODEL ?= demo/model
ADAPTERS ?= demo/adapters
ARGS ?=

help:     ## what there is to make
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: .venv/.stamp  ## .venv from requirements/lock.txt [PYTHON=, TORCH_INDEX=]

.venv/.stamp: requirements/lock.txt requirements/protos.txt requirements/install.sh pyproject.toml
	PYTHON="$(PYTHON)" TORCH_INDEX="$(TORCH_INDEX)" sh requirements/install.sh
	@touch $@

serve: setup  ## the demo model and its adapters on http://127.0.0.1:8080 [MODEL=, ADAPTERS=, PORT=, ARGS=]
	$(BIN)/adex serve --model-id $(MODEL) --local-adapter-root $(ADAPTERS) --port $(PORT) $(ARGS)

system:   ## programs that some tests drive, where root may install them
	@sh requirements/system.sh

test: setup system  ## every test [ARGS=]
	$(BIN)/pytest $(ARGS)

check: setup  ## formatting, lint, types and import contracts
	$(BIN)/ruff format --check --quiet . || { echo "run: make fix"; exit 1; }
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports --no-cache

fix: setup    ## what the formatter and the linter can mend by themselves
	$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format .

protos: setup  ## the generated protobuf code, with the oldest supported compiler
	PYTHONPATH=.venv/protoc $(BIN)/python -m grpc_tools.protoc --proto_path=proto \
	  --python_out=proto --pyi_out=proto --grpc_python_out=proto proto/adex_proto/v1/*.proto

bench: setup  ## serving beside transformers + PEFT, in one table [ARGS=]
	$(BIN)/python benchmarks/serve.py $(ARGS)

bench-exchange: setup  ## adapters far beyond memory, beside all resident; takes 15 minutes [ARGS=]
	$(BIN)/python benchmarks/exchange.py $(ARGS)

bench-gpu: setup  ## decode steps, low-rank terms, page-ins and draws on this machine's GPU [ARGS=]
	PYTHONPATH=kernels:proto:worker $(BIN)/python benchmarks/gpu_bench.py $(ARGS)

lock:     ## requirements/lock.txt anew from pyproject.toml, and those of tested clients [TORCH=]
	TORCH="$(TORCH)" PYTHON="$(PYTHON)" sh requirements/lock.sh
	PYTHON="$(PYTHON)" sh requirements/lock_clients.sh

clean:    ## everything that was generated here and is not committed
	rm -rf .venv .venv-clients .*_cache .hypothesis build dist
