VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
CONSTRAINTS := constraints.txt
# Processes that share the tests, a file each. More than two want more than 24 GiB of memory.
JOBS ?= 2

.PHONY: serve test reliability lint proto bench clean

serve: $(VENV)/.serve
	$(BIN)/critiq serve $(ARGS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

# A minute of load and more for each test, then twenty minutes of soak; their short forms are among the tests.
reliability: $(VENV)/.dev
	CRITIQ_RELIABILITY=full $(BIN)/python -m pytest -s tests/reliability --timeout=900 $(ARGS)
	$(BIN)/python -m tests.reliability.soak --minutes 20

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/contract.py check
	$(BIN)/python -m tools.settings_page check
	$(BIN)/python -m tools.chart check
	$(BIN)/python -m tools.dashboard check

proto: $(VENV)/.dev
	$(BIN)/python tools/contract.py generate

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/serving.py $(ARGS)

clean:
	rm -rf $(VENV)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.serve: $(VENV)/bin/python pyproject.toml $(CONSTRAINTS)
	$(PIP) install -c $(CONSTRAINTS) -e '.[server]'
	touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml $(CONSTRAINTS)
	$(PIP) install -c $(CONSTRAINTS) -e '.[dev]'
	touch $@ $(VENV)/.serve
