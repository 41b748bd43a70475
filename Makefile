# make train      train on moving digits: a narrow model on a CPU, the paper's on a GPU; ARGS="--help" lists options
# make test       run the quick tests; ARGS="tests/data" runs those of a folder
# make test-all   run all tests, also those that take long
# make bench      measure times and errors of all operations, on the GPU if there is one; ARGS="--help" lists options
# make gpu        check, test and benchmark on a GPU in ten minutes, important parts first; ARGS="--help" lists options
# make lint       check the code's style, and the types of the public interface
# make oldest-triton  compile all Triton kernels with the oldest version that pyproject.toml allows; needs no GPU
#
# Each makes its own virtual environment in .venv once, with the versions of constraints.txt.

PYTHON ?= python3
BIN := .venv/bin

# Several processes with one thread each finish sooner than one process with many threads. Tests of a file share what
# they set up, and stay together.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest
PARALLEL = -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

.PHONY: train test test-all bench gpu lint oldest-triton

train: .venv/installed
	$(BIN)/python -m tgan_fast.train $(ARGS)

test: .venv/installed
	$(PYTEST) $(PARALLEL) -m "not slow and not alone" $(ARGS)

test-all: .venv/installed
	$(PYTEST) $(PARALLEL) -m "not alone" $(ARGS)
	$(PYTEST) -m alone $(ARGS) || [ $$? -eq 5 ]  # 5: none was chosen

bench: .venv/installed
	$(BIN)/python -m benchmarks $(ARGS)

gpu: .venv/installed
	$(BIN)/python -m benchmarks.validate $(ARGS)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror csrc/*/* tests/csrc/*.cpp tests/csrc/emulator/*.[ch]*

oldest-triton: .venv/triton-3.6
	PYTHONPATH=$< $(BIN)/python -m benchmarks.kernel_resources triton --architectures 90 > /dev/null

.venv/triton-3.6: .venv/installed
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $@ triton==3.6.0

# PyTorch first: what is installed decides which build of it everything else uses.
.venv/installed: pyproject.toml setup.py constraints.txt $(wildcard csrc/*/*)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@
