PYTHON ?= python3
VENV ?= .venv
DATA_DIR ?= data
WORKDIR ?= workdir/quickstart
RUN := $(VENV)/bin/python
MAIN := $(RUN) -m dlv3p_jax.main --config=configs/quickstart.py --config.data_dir=$(DATA_DIR) --workdir=$(WORKDIR)
# Large pages for XLA's temporary arrays: a training step takes about a fifth less of a CPU's time with them.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: help quickstart test lint clean

help:
	@echo 'make quickstart   from nothing to a trained model on the built-in data set, its scores and a picture'
	@echo 'make test         the test suite'
	@echo 'make lint         ruff and mypy'
	@echo 'make clean        removes the virtual environment'
	@echo 'PYTHON=python3.12 picks a Python, VENV=FOLDER where its environment goes. README.md tells of the rest.'

# This package, editable, with what trains, in the exact versions that were tested.
$(VENV)/installed: requirements.txt setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=…")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint requirements.txt --editable '.[train]'
	touch $@

# And what tests and lint need.
$(VENV)/dev: $(VENV)/installed
	$(RUN) -m pip install --quiet --requirement requirements.txt --editable '.[dev]'
	touch $@

# Speed differs by three times between machines: measure a matrix product before saying how long this one will take.
define EXPECTED
import time, jax
product = jax.jit(lambda a: a @ a)
a = product(jax.numpy.ones((2048, 2048))).block_until_ready()
start = time.monotonic()
for _ in range(10):
    product(a).block_until_ready()
gigaflops = 10 * 2 * 2048**3 / (time.monotonic() - start) / 1e9
print(f"About {60 + 21000 / gigaflops:.0f} s from here ({gigaflops:.0f} GFLOP/s in a float32 matrix product).")
endef
export EXPECTED

quickstart: $(VENV)/installed
	@$(RUN) -c "$$EXPECTED"
	test -d $(DATA_DIR)/toy_streets/1.0.0 || test -d $(DATA_DIR)/toy_streets/2.0.0 || \
	  $(RUN) -m dlv3p_jax.prepare --dataset=toy_streets --data_dir=$(DATA_DIR)
	$(MAIN)
	$(MAIN) --mode=eval --config.eval.flip=True --config.eval.scales="(0.75, 1.0, 1.25)"

test: $(VENV)/dev
	$(RUN) -m pytest --numprocesses=2

lint: $(VENV)/dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

clean:
	rm -rf $(VENV) *.egg-info build
