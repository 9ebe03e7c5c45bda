# Needs only python3, make and git. Every target makes .venv first when it is not there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1

PEERS := runs/bench/env-pfl/.installed runs/bench/env-flower/.installed

.PHONY: proto demo docs docs-check test test-live test-slow test-faults test-soak test-fast check format studies wheels clean bench-simulation bench-curves bench-private bench-transport bench-link

demo: $(INSTALLED)  ## a real federation of three observatories on this machine
	$(BIN)/asterion demo --out runs/demo

# In the order of the folders: by itself xdist leaves the files with one long test for the end.
SPREAD := -n 2 --dist loadfile --no-loadscope-reorder

test: $(INSTALLED)  ## every test but the live and the nightly ones: 15 minutes on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not nightly and not live" $(SPREAD)

test-live: $(INSTALLED)  ## real processes, TLS, networks and browsers: 35 minutes on two cores
	$(BIN)/python -m pytest -m "live and not nightly" $(SPREAD) --durations 25

docs: $(INSTALLED)  ## the documentation, with tutorials carried out: docs/_build/index.html
	$(BIN)/python -m sphinx -W --keep-going -q docs docs/_build

docs-check: $(INSTALLED)  ## the same without tutorials and docstrings: seconds, for every change
	$(BIN)/python -m sphinx -W --keep-going -q -t quick docs docs/_build/quick

test-slow: $(INSTALLED)  ## what takes more minutes than a change should wait for
	$(BIN)/python -m pytest -m nightly --durations 0

test-faults: $(INSTALLED)  ## processes killed at every step, alone and in pairs; bad networks (root)
	failed=0; \
	$(BIN)/python -m tests.faults.kill_matrix --out runs/faults || failed=1; \
	$(BIN)/python -m tests.network.matrix --out runs/faults/network.json \
	    --into runs/faults/summary.json || failed=1; \
	exit $$failed

test-soak: $(INSTALLED)  ## 100 virtual sites for 100 rounds over the real link: does anything grow?
	$(BIN)/python -m tests.network.soak --out runs/faults/soak.json

test-fast: $(INSTALLED)  ## without real Flower processes and without what takes minutes
	$(BIN)/python -m pytest -m "not live and not slow and not nightly"

check: $(INSTALLED)  ## format, lint, types by two checkers, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

proto: $(INSTALLED)  ## the link's messages from their .proto
	cd shared && ../$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. \
	    --grpc_python_out=. asterion_shared/link/link.proto

studies: $(INSTALLED)  ## the table of the README, on the data in $$ASTERION_DATA
	$(BIN)/asterion studies --out runs/studies

bench-simulation: $(INSTALLED) $(PEERS)  ## our simulator beside its peers: the table of docs/performance.md
	$(BIN)/python simulations/bench/bench_simulation.py $(BENCH)

bench-link: $(INSTALLED)  ## our link beside stock Flower: an empty round, a model of 200 MB
	$(BIN)/python simulations/bench/bench_link.py

bench-curves: $(INSTALLED)  ## limits of the machine; cost by sites, model and cohort
	$(BIN)/python simulations/bench/limits.py
	$(BIN)/python simulations/bench/curves.py

bench-private: $(INSTALLED)  ## the private step beside the plain one, and a site's whole one beside Opacus's
	$(BIN)/python simulations/bench/private_step.py
	$(BIN)/python simulations/bench/private_live_step.py

bench-transport: $(INSTALLED)  ## rounded updates and packed chunks, on the data in $$ASTERION_DATA
	$(BIN)/python simulations/bench/transport_cost.py --data $$ASTERION_DATA
	$(BIN)/python simulations/bench/transport_deviation.py --data $$ASTERION_DATA

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

# A peer is measured in an environment of its own.
runs/bench/env-pfl/.installed: PEER := pfl[pytorch]==0.6.0
runs/bench/env-flower/.installed: PEER := flwr[simulation]==1.41.0
runs/bench/env-%/.installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet torch==2.13.0
	$(@D)/bin/pip install --quiet torch==2.13.0 "$(PEER)"
	touch $@

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
