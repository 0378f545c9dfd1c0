# make quickstart: everything from nothing to a trained model on the built-in data. make test: the test suite.
PYTHON ?= python3
VENV ?= .venv
WORKDIR ?= workdir/quickstart
RUN := $(VENV)/bin/python

.PHONY: quickstart test lint clean

# The exact versions that were tested, then this package, editable.
$(VENV)/installed: requirements.txt setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --requirement requirements.txt
	$(RUN) -m pip install --quiet --editable '.[dev]'
	touch $@

quickstart: $(VENV)/installed
	$(RUN) -m dlv3p_jax.quickstart --workdir=$(WORKDIR)

test: $(VENV)/installed
	$(RUN) -m pytest --numprocesses=2

lint: $(VENV)/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

clean:
	rm -rf $(VENV) workdir data build *.egg-info
