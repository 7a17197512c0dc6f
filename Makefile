# Everything works on a bare machine with Python 3.11 or newer: `make demo`, `make test`, `make check`.
# The first of them creates .venv and installs qcompile there; later ones reuse it.

SHELL   := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON  ?= python3
# Installed first, so that installing qcompile does not choose another build of torch.
# Where a plain install brings the GPU build, name the CPU wheel: make test TORCH=path/or/url/of/a/wheel
TORCH   ?= torch==2.13.0
JOBS    ?= 2

VENV    := .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed
QC      := $(BIN)/qcompile
DEMO    := build/demo
RESNET  := models/digits_resnet
MOBILE  := models/digits_mobilenet

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-gpu check format clean

help:  ## show this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

$(STAMP): pyproject.toml tests/curvlinops.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "qcompile needs Python 3.11 or newer; choose one with: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) cannot create virtual environments; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '$(TORCH)'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,dev,cuda]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/curvlinops.txt
	@touch $@

demo: $(STAMP)  ## compile, verify, evaluate and time the two digit networks
	@rm -rf $(DEMO) && mkdir -p $(DEMO)
	$(QC) $(RESNET)/digits_resnet.onnx --target cpu --memory 24KiB \
	  --calib $(RESNET)/calib.npz --eval $(RESNET)/eval.npz -o $(DEMO)/digits_resnet.qc
	$(QC) explain $(DEMO)/digits_resnet.qc
	$(QC) verify $(DEMO)/digits_resnet.qc --data $(RESNET)/eval.npz
	$(QC) eval $(DEMO)/digits_resnet.qc --data $(RESNET)/eval.npz
	$(QC) bench $(DEMO)/digits_resnet.qc --threads 1
	$(QC) $(MOBILE)/digits_mobilenet.onnx --target cpu --uniform w8a8 \
	  --calib $(MOBILE)/calib.npz --eval $(MOBILE)/eval.npz -o $(DEMO)/digits_mobilenet.qc
	$(QC) verify $(DEMO)/digits_mobilenet.qc --data $(MOBILE)/eval.npz
	$(QC) eval $(DEMO)/digits_mobilenet.qc --data $(MOBILE)/eval.npz
	$(QC) bench $(DEMO)/digits_mobilenet.qc --threads 1

test: $(STAMP)  ## run all tests, as CI does
	$(BIN)/python -m pytest -n $(JOBS)

test-slow: $(STAMP)  ## the tests that take minutes: accuracy of whole networks on real data
	$(BIN)/python -m pytest -m slow

test-gpu: $(STAMP)  ## on a machine with an NVIDIA GPU: every kernel and network, bit for bit
	$(BIN)/python -m pytest -m gpu

check: $(STAMP)  ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)  ## format the code and apply the safe lint fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment, build outputs and caches
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
