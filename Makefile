# Serve, test, check and measure roseinfer from a fresh clone. The first run makes .venv and builds the kernels.
PYTHON ?= python3
PORT ?= 8000
MODEL ?= smollm2-135m
VENV := .venv
BIN := $(VENV)/bin
FIGURES := build/bench
# Under a sanitizer memory does not run out the way that the deselected test arranges.
SANITIZED_TESTS := tests/backends/native --deselect \
    tests/backends/native/test_regressions.py::test_a_worker_without_memory_fails_the_call_only
SOURCES := pyproject.toml CMakeLists.txt $(wildcard csrc/*)

.PHONY: serve test check bench bench-cuda chaos soak fuzz sanitize format clean

serve: $(VENV)/.serve
	$(BIN)/roseinfer serve $(MODEL) --port $(PORT)

test: $(VENV)/.test
	$(BIN)/python -m pytest -q $(PYTEST_ARGS)

check: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror csrc/*.cpp csrc/*.h csrc/*.inl
	$(BIN)/python -m pytest -q tests/test_import_rule.py

# Hostile model files, ten minutes on two cores; the suite runs a few thousand of each format.
fuzz: $(VENV)/.test
	$(BIN)/python -m tests.fuzz gguf safetensors --count 100000
	$(BIN)/python -m tests.fuzz torch --count 20000
	$(BIN)/python -m tests.fuzz config program tokenizer template --count 5000

# The kernels built with the address, undefined-behaviour and thread sanitizers, under their tests and odd models.
sanitize: $(VENV)/.test
	VENV=$(VENV) sh scripts/sanitize.sh address -m pytest -q -p no:cacheprovider $(SANITIZED_TESTS)
	VENV=$(VENV) sh scripts/sanitize.sh address -m tests.fuzz program gguf safetensors torch --count 2000 --memory 0
	VENV=$(VENV) sh scripts/sanitize.sh thread -m tests.fuzz program --count 500 --memory 0

bench: $(VENV)/.test
	$(BIN)/python -m benchmarks.kernels --quick --json $(FIGURES)/kernels.json
	$(BIN)/python -m benchmarks.growth $(MODEL) --json $(FIGURES)/growth.json
	$(BIN)/python -m benchmarks.plots --kernels $(FIGURES)/kernels.json --growth $(FIGURES)/growth.json --out docs
	$(BIN)/roseinfer bench $(MODEL)

# On a machine with a GPU: the CUDA backend against the card's limits and against transformers.
bench-cuda: $(VENV)/.test
	$(BIN)/python -m benchmarks.cuda --json $(FIGURES)/cuda.json $(BENCH_ARGS)

# What has to hold when engines die, hang, starve or are attacked, at full scale; `make test` runs a small one.
chaos: $(VENV)/.test
	$(BIN)/python -m tests.chaos $(CHAOS_ARGS)

soak: $(VENV)/.test
	$(BIN)/python -m tests.chaos soak $(CHAOS_ARGS)

format: $(VENV)/.test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i csrc/*.cpp csrc/*.h csrc/*.inl

# An editable install: a change in Python is live, a change in csrc/ builds again.
$(VENV)/.serve: $(SOURCES)
	@sh scripts/check_tools.sh $(PYTHON)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.test: $(SOURCES)
	@sh scripts/check_tools.sh $(PYTHON)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[test,lint,bench]'
	touch $(VENV)/.serve $@

clean:
	rm -rf $(VENV) build
