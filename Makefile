# make demo: the main job on the embedded sample. make test: the tests. Each makes the environment first, and does nothing
# when nothing changed since it last passed (make -B does it all the same).
PYTHON ?= python3
VENV := .venv
XLA := .venv-xla
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := $(shell find xraylab conf -type f -not -path '*/__pycache__/*') pyproject.toml constraints.txt
TESTS := $(shell find tests experiments -type f -not -path '*/__pycache__/*') $(shell find docs -name "*.md" -not -name configuration.md) README.md Makefile

.PHONY: help demo docs test test-all test-xla lint clean

help:
	@echo "make demo   train, validate and test the main job on the embedded synthetic sample (about a minute)"
	@echo "make test   run the tests (make test ARGS='-k losses' some of them)"
	@echo "make test-all  those too that take long: whole sweeps and recipes (half an hour on two cores)"
	@echo "make test-xla  the TPU's path on a CPU, in an environment of its own (8 GB once, then a few minutes)"
	@echo "make docs   the documentation, to docs/_build"
	@echo "make lint   ruff, mypy, and who imports whom"
	@echo "make clean  delete the environment and caches, keep outputs/"

# a module is compiled when it is first imported: to compile all 21,000 here takes two minutes
$(STAMP): pyproject.toml constraints.txt tests/requirements-judges.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "xraylab needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12")'
	@echo "making the environment in $(VENV): about 5 GB and a few minutes, once"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps -r tests/requirements-judges.txt
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
	$(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile -m 'not slow'
	@date > $@

test-all: $(STAMP)
	$(BIN)/python -m pytest -n logical --maxprocesses 8

# torch_xla needs the torch of its own number, so what constraints.txt says of torch is left out
test-xla: $(XLA)/.installed
	PJRT_DEVICE=CPU OMP_NUM_THREADS=1 $(XLA)/bin/python -m pytest -p no:cacheprovider tests/training/test_xla.py $(ARGS)

$(XLA)/.installed: tests/requirements-xla.txt constraints.txt
	@echo "making the environment in $(XLA): about 8 GB and a few minutes, once"
	$(PYTHON) -m venv $(XLA)
	grep -vE '^(torch|torchvision|triton)==|^(nvidia|cuda)-' constraints.txt > $(XLA)/constraints.txt
	$(XLA)/bin/python -m pip install --quiet --disable-pip-version-check -c $(XLA)/constraints.txt -r tests/requirements-xla.txt
	@touch $@

docs: $(STAMP)
	$(BIN)/python -m sphinx -W --keep-going -q docs docs/_build
	@echo "read docs/_build/index.html"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) $(XLA) docs/_build .pytest_cache .mypy_cache .ruff_cache build dist
