# `make` alone lists what there is. Everything runs in .venv, which the first command that needs it creates.
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3,$(if $(shell $(p) -c 'import sys; print("y" if (3, 11) <= sys.version_info < (3, 13) else "")' 2>/dev/null),$(p))))
BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint format train-demo ablation bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "Tercet needs Python 3.11 or 3.12; none was found on PATH. Name one: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@echo "Setting up .venv (once; a few minutes, most of it PyTorch)"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -e '.[dev]'
	@touch $@

demo: $(READY)  ## export the demo networks, start Triton, index a gallery, answer composed queries, draw them
	$(BIN)/python -m tercet_training.demo

test: $(READY)  ## everything but the slow tests, against a real Triton
	$(BIN)/python -m pytest -m "not slow"

test-all: $(READY)  ## the slow tests too: full-size networks, long runs
	$(BIN)/python -m pytest

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## let ruff rewrite the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

train-demo: $(READY)  ## train the demo networks from scratch (under an hour on two cores)
	$(BIN)/tercet-train demo

ablation: $(READY)  ## every way to compose a query, on the synthetic world, by kind of modification; writes the README's table
	$(BIN)/python -m tercet_training.ablation

bench: $(READY)  ## how fast it is, beside the machine's limits and other servers, and whether that became worse (half an hour)
	$(BIN)/python -m benchmarks

clean:  ## remove what was built: environment, exports, demo output
	rm -rf .venv build demo_output bench_output *.egg-info client/*.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find model_repository -path '*/1/*' \( -name '*.onnx' -o -name '*.data' -o -name '*.json' \) -delete
