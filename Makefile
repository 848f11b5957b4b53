# The commands of the README. Each makes .venv first if it is missing or older than what defines it.
PYTHON ?= python3
HASHED ?= # 1: install only files whose digests are known; not for other builds of torch than the package index has
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo demo-dense test lint bench-gpu install clean

demo: install  ## train, explain and use a small FLatten-DeiT on handwritten digits (about 2 minutes on 2 CPU cores)
	$(BIN)/flatten demo

demo-dense: install  ## find digits on photographs: train and use a detector and a segmenter (about 15 minutes on 2 CPU cores)
	$(BIN)/flatten demo-dense

test: install lint  ## style, types, every test and every example in the documentation
	$(BIN)/python -m pytest -n auto

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench-gpu:  ## measure on this machine's GPU (under 8 minutes; needs torch, triton, timm and matplotlib, installs nothing)
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) benchmarks/gpu.py

install: $(VENV)/installed

PIP := $(BIN)/python -m pip --disable-pip-version-check install
$(VENV)/installed: pyproject.toml constraints.txt requirements-hashed.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "flatten-transformer needs Python 3.10 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(if $(strip $(HASHED)),$(PIP) --require-hashes --only-binary :all: --requirement requirements-hashed.txt)
	$(PIP) $(if $(strip $(HASHED)),--no-deps --no-build-isolation) --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs
