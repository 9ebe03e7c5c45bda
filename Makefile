# Needs only python3, make and git. Every target makes .venv first when it is not there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1

.PHONY: demo test test-fast check format studies wheels clean

demo: $(INSTALLED)  ## a real federation of three observatories on this machine
	$(BIN)/asterion demo --out runs/demo

test: $(INSTALLED)  ## every test, live federations included
	$(BIN)/python -m pytest

test-fast: $(INSTALLED)  ## without real Flower processes and without what takes minutes
	$(BIN)/python -m pytest -m "not live and not slow"

check: $(INSTALLED)  ## format, lint, types by two checkers, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

studies: $(INSTALLED)  ## the table of the README, on the data in $$ASTERION_DATA
	$(BIN)/asterion studies --out runs/studies

wheels: $(INSTALLED)  ## the three wheels, into dist/
	for folder in shared client .; do \
	    $(BIN)/python -m build --wheel --no-isolation --outdir dist $$folder || exit 1; \
	done

# torch first and alone: other packages ask for a range of it.
$(INSTALLED): constraints.txt pyproject.toml shared/pyproject.toml client/pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt -e shared -e client -e ".[all,dev]"
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
