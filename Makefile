# make demo   a virtual environment, everything installed, then the demo into runs/demo
# make test   the same set-up, then every test, the real Lava included
# Needs Python >= 3.11, make and (for the fast kernels) a C++ compiler.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.stamp-installed
COMPILED := $(wildcard */*/*.cpp */*/*.h)
export SPIKEPORT_LAVA_HOME ?= $(CURDIR)/.lava
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# One process of tests per core, a file of tests at a time: its fixtures train networks. The order is that of
# tests/conftest.py, the longest first.
PARALLEL := -n auto --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-long gpu lint install lava browser clean

demo: install lava
	$(BIN)/spikeport demo --out runs/demo --overwrite

test: lint lava browser
	$(BIN)/python -m pytest $(PARALLEL)

# Many more random networks than `make test` draws.
test-long: lint lava browser
	HYPOTHESIS_PROFILE=long $(BIN)/python -m pytest $(PARALLEL) --timeout 7200

# The kernels on a GPU: their tests, then every figure, as tables and as JSON in $(GPU_OUT). torch must see the GPU. A step
# that fails does not keep the others from running; the last word is whether all went well.
# Without a network: make gpu GPU_PYTHON=python3, of an environment that has spikeport (pip install --no-deps
# --no-build-isolation -e . compiles its CPU kernels), its peers, pytest and pytest-xdist.
GPU_PYTHON ?= $(BIN)/python
GPU_OUT ?= runs/gpu
gpu: $(if $(filter $(BIN)/python,$(GPU_PYTHON)),install)
	mkdir -p $(GPU_OUT)
	$(GPU_PYTHON) -c "from spikeport.core.kernels import cuda; assert not cuda.missing(), cuda.missing()"
	failed=0; \
	$(GPU_PYTHON) -m pytest tests/core/kernels/test_on_gpu.py -n 8 || failed=1; \
	$(GPU_PYTHON) tests/benchmarks/lif.py --device cuda --json $(GPU_OUT)/lif.json || failed=1; \
	$(GPU_PYTHON) tests/benchmarks/train_step.py --device cuda --json $(GPU_OUT)/train_step.json || failed=1; \
	exit $$failed

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

install: $(INSTALLED)

# torch comes first and alone, so that no other requirement can choose its build. The peers' own pins would replace
# it, or pull in a torchvision that does not load beside a CPU build: they go in without their dependencies.
# A new pip, for the one of Python 3.11 downloads a dozen releases of CUDA's libraries before it settles on one. Byte code
# is made at the end, on every core, where pip would use one: without it, and where PYTHONDONTWRITEBYTECODE is set, every
# start of Python would compile torch anew. A file for a newer Python does not compile, which is no failure.
PIP_INSTALL := $(BIN)/pip install -qq --no-compile -c constraints.txt
$(INSTALLED): pyproject.toml constraints.txt $(COMPILED)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -qq --upgrade pip
	$(PIP_INSTALL) torch
	$(PIP_INSTALL) -e '.[peers,counters,cuda,dev]'
	$(PIP_INSTALL) --no-deps spikingjelly syops neurobench
	$(BIN)/python -m compileall -q -j 0 -x '/tests?/' $(VENV)/lib > /dev/null || true
	touch $@

lava: install
	$(BIN)/spikeport lava setup

# The report is tested in a Chromium: the system's; as root on Debian it is installed; else the one Playwright brings.
browser: install
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null \
	|| { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq \
	&& apt-get install -y -qq --no-install-recommends chromium >/dev/null; } \
	|| $(BIN)/playwright install chromium

clean:
	rm -rf $(VENV) .lava build runs
