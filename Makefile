# make quickstart: from nothing to a trained model on the built-in data. make test: the test suite. See README.md.
PYTHON ?= python3
VENV ?= .venv
DATA_DIR ?= data
WORKDIR ?= workdir/quickstart
RUN := $(VENV)/bin/python
MAIN := $(RUN) -m dlv3p_jax.main --config=configs/quickstart.py --config.data_dir=$(DATA_DIR) --workdir=$(WORKDIR)
# Large pages for XLA's temporary arrays: a training step takes about a fifth less of a CPU's time with them.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: quickstart test lint clean

# The exact versions that were tested, then this package, editable.
$(VENV)/installed: requirements.txt setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=…")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --requirement requirements.txt
	$(RUN) -m pip install --quiet --editable '.[dev]'
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

test: $(VENV)/installed
	$(RUN) -m pytest --numprocesses=2

lint: $(VENV)/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

clean:
	rm -rf $(VENV) *.egg-info build
