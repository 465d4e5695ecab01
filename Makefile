# Each target makes .venv when it is missing: `make demo` and `make test` are all the set-up there is.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test fuzz soak lint bench bench-learning bench-gflownet bench-molecules gpu docs clean

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[mujoco,plots,molecules,active,dask,dev]"
	touch $@

demo: .venv/ready
	$(BIN)/python -m experiments.demo

test: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# kill -9 at random moments: `make soak MINUTES=30`
soak: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m experiments.bench.soak --minutes $(or $(MINUTES),30)

# Damaged and hostile files for every loader, as many as INPUTS; counts on stderr
INPUTS ?= 100000
fuzz: .venv/ready
	FUZZ=$(INPUTS) OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/fuzz -q -s -p no:cacheprovider

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/ready
	$(BIN)/python -m experiments.bench.pg

# Stable-Baselines3, in an environment of its own; make bench-learning ARGS="--tasks Hopper-v5"
.venv-sb3/ready: experiments/bench/peers/sb3-constraints.txt
	$(PYTHON) -m venv .venv-sb3
	.venv-sb3/bin/python -m pip install --quiet --disable-pip-version-check --constraint $< "torch==2.13.0"
	.venv-sb3/bin/python -m pip install --quiet --disable-pip-version-check --constraint $< stable-baselines3 sb3-contrib "gymnasium[mujoco]"
	touch $@

bench-learning: .venv/ready .venv-sb3/ready
	$(BIN)/python -m experiments.bench.learning $(ARGS)

# torchgfn and gfnx ask for an older numpy, so they live in an environment of their own
.venv-peers/ready: experiments/bench/peers/constraints.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --constraint $< "torch==2.13.0"
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --constraint $< torchgfn gfnx equinox optax
	touch $@

bench-gflownet: .venv/ready .venv-peers/ready
	$(BIN)/python -m experiments.bench.gflownet

bench-molecules: .venv/ready
	$(BIN)/python -m experiments.bench.molecules

# On a machine with a CUDA GPU: PARTS=tests, grid, molecules, cli (default: all), each within ten minutes. Nothing is installed.
gpu:
	$(if $(wildcard .venv/ready),$(BIN)/python,$(PYTHON)) -m experiments.bench.gpu $(PARTS)

.venv/docs-ready: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[docs]"
	touch $@

docs: .venv/docs-ready
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build

clean:
	rm -rf .venv .venv-peers .venv-sb3 runs docs/_build docs/reference
