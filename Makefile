# make demo [SCENES=dir]   the whole path in ten minutes: scenes -> corpus -> pre-training -> probe
#           [OUT=dir]      where to (demo): a new folder, or one of an earlier demo, which is replaced
# make test                the whole test suite            (SLOW=1: the long ones too; JOBS: processes, 2)
# make lint                ruff and pyright
# make bench               the benchmarks: tables on standard output
#
# PYTHON: which Python to make the environment of (3.11 or newer). TORCH: which torch; empty: the newest that fits.

PYTHON ?= python3
TORCH ?= torch==2.14.1 torchvision==0.29.1
VENV ?= .venv
OUT ?= demo
SCENES ?=
JOBS ?= 2

BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint bench clean env

env: $(READY)

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(if $(strip $(TORCH)),$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH))
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $(READY)

demo: $(READY)
	PATH="$(abspath $(BIN)):$$PATH" docs/demo.sh $(OUT) $(SCENES)

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(if $(SLOW),,-m 'not slow')

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: $(READY)
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) demo *.egg-info
