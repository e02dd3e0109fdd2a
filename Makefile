# make train: the default run. make test: the tests, in two processes. make test-slow: those of minutes.
# make check: style, import contracts and types.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: train test test-slow check

train: $(VENV)/installed
	$(RUN) -m bbu_train

test: $(VENV)/installed
	$(RUN) -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/installed
	$(RUN) -m pytest -m slow

check: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports
	$(VENV)/bin/pyrefly check --python-interpreter-path $(RUN) --summary=none

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@
