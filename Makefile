# make demo   a virtual environment, everything installed, then the demo into runs/demo
# make test   the same set-up, then every test, the real Lava included
# Needs Python >= 3.11, make and (for the fast kernels) a C++ compiler.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.stamp-installed
export SPIKEPORT_LAVA_HOME ?= $(CURDIR)/.lava
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-long lint install lava clean

demo: install lava
	$(BIN)/spikeport demo --out runs/demo --overwrite

test: lint lava
	$(BIN)/python -m pytest

# Many more random networks than `make test` draws.
test-long: lint lava
	HYPOTHESIS_PROFILE=long $(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

install: $(INSTALLED)

# torch comes first and alone, so that no other requirement can choose its build. The peers' own pins would replace
# it, or pull in a torchvision that does not load beside a CPU build: they go in without their dependencies.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e '.[peers,counters,cuda,dev]'
	$(BIN)/pip install -q --no-deps -c constraints.txt spikingjelly
	touch $@

lava: install
	$(BIN)/spikeport lava setup

clean:
	rm -rf $(VENV) .lava build runs
