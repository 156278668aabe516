# make demo: the main job on the embedded sample. make test: the tests. Each makes the environment first, and does nothing
# when nothing changed since it last passed (make -B does it all the same).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := $(shell find xraylab conf -type f -not -path '*/__pycache__/*') pyproject.toml constraints.txt
TESTS := $(shell find tests experiments -type f -not -path '*/__pycache__/*') README.md Makefile

.PHONY: help demo test lint clean

help:
	@echo "make demo   train, validate and test the main job on the embedded synthetic sample (about a minute)"
	@echo "make test   run the tests (make test ARGS='-k losses' some of them)"
	@echo "make lint   ruff and mypy"
	@echo "make clean  delete the environment and caches, keep outputs/"

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "xraylab needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12")'
	@echo "making the environment in $(VENV): about 5 GB and a few minutes, once"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(VENV)/.demo
	@echo "the demo's run is $$(cat $<): read report.html there (make -B demo runs it again)"

$(VENV)/.demo: $(STAMP) $(SOURCES)
	$(BIN)/python -m xraylab.train dataset=mrnet plane=axial dataset.root=sample
	@ls -d outputs/mrnet/*/ | tail -n 1 > $@

ifdef ARGS
test: $(STAMP)
	$(BIN)/python -m pytest $(ARGS)
else
test: $(VENV)/.tested
	@echo "the tests passed, and nothing changed since $$(cat $<) (make -B test runs them again)"
endif

$(VENV)/.tested: $(STAMP) $(SOURCES) $(TESTS)
	$(BIN)/python -m pytest -n logical --maxprocesses 8
	@date > $@

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build dist
