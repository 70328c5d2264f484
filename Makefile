# `make demo` and `make test` set up .venv by themselves, each with what it needs; PYTHON chooses the interpreter, SEED the
# demo's seed.
# The first that runs and is new enough: a shim of pyenv may be there and fail.
PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11 python, \
  $(shell $(name) -c 'import sys; sys.version_info >= (3, 11) and print("$(name)")' 2>/dev/null)) python3)
SEED ?= 0
VENV ?= .venv
BIN := $(VENV)/bin

# uv installs the same versions in a tenth of the time; pip does where uv cannot, as behind settings that only pip reads.
# install(environment, what)
PIP := -m pip install --quiet --disable-pip-version-check
install = ($(1)/bin/python $(PIP) uv && $(1)/bin/uv pip install --quiet --python $(1)/bin/python $(2)) 2>/dev/null \
  || $(1)/bin/python $(PIP) $(2)

.PHONY: demo test test-all test-browser test-plan test-interop slow mutants lint docs setup clean

setup: $(VENV)/ready

$(VENV)/demo: EXTRAS := train,plots
$(VENV)/ready: EXTRAS := dev
$(VENV)/demo $(VENV)/ready: pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v >= (3, 11) else f"WSM-JAX needs Python 3.11 or newer, this is {v[0]}.{v[1]}: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(call install,$(VENV),-e '.[$(EXTRAS)]')
	touch $@

demo: $(VENV)/demo
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m experiments.demo --seed=$(SEED) --output=runs/demo-$(SEED)

# Compiling is most of the work of the tests, and XLA compiles in half the time what it optimizes little. make test-all,
# whose tests hold bits of merges to what users get, and whoever calls pytest compile as users do. Processes that tests
# start find the bytecode of those before, whatever the shell has set.
# Lint runs beside them and says at the end what it found.
test: setup
	@mkdir -p build
	@$(MAKE) --no-print-directory lint > build/lint.txt 2>&1 & lint=$$!; trap "kill $$lint" INT TERM; \
	PYTHONDONTWRITEBYTECODE= JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(BIN)/python -m pytest -q -n 2 --dist loadgroup; tests=$$?; \
	wait $$lint; lint=$$?; cat build/lint.txt; test $$tests = 0 && test $$lint = 0

test-all: setup  # what make test leaves out, but for what takes minutes each
	$(BIN)/python -m pytest -q -n 2 --dist loadgroup -m 'integration and not slow'

test-browser: setup tests/browser/node_modules/ready  # needs Node.js; the browser comes with a package of npm's
	$(BIN)/python -m pytest -q -m browser

tests/browser/node_modules/ready: tests/browser/package-lock.json
	cd tests/browser && npm ci --no-audit --no-fund --ignore-scripts
	touch $@

# Compiles for TPUs that are not here: needs Python 3.12 or newer, and an environment of its own with libtpu.
PLAN_PYTHON ?= python3.12

test-plan: $(VENV)-plan/ready
	$(VENV)-plan/bin/python -m pytest -q -m plan

$(VENV)-plan/ready: EXTRAS := dev,tpu
$(VENV)-plan/ready: pyproject.toml
	$(PLAN_PYTHON) -m venv $(VENV)-plan
	$(call install,$(VENV)-plan,-e '.[$(EXTRAS)]')
	touch $@

test-interop: setup build/interop/ready  # logits beside those of transformers, both ways; the result is committed
	$(BIN)/python -m tests.interop.parity --peer=build/interop/bin/python --output=results/interop/parity.json

build/interop/ready:  # PyTorch and transformers have an environment of their own
	$(PYTHON) -m venv build/interop
	build/interop/bin/python $(PIP) "torch==2.13.*" "transformers==5.24.*"
	touch $@

slow: setup
	$(BIN)/python -m pytest -q -n 2 --dist loadgroup -m slow

mutants: setup  # faults put into core/ and merging/, one at a time, each of which a test must find
	$(BIN)/python -m tests.mutants

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --site-dir build/docs

docs: setup  # look at them while they are written
	$(BIN)/mkdocs serve

clean:
	rm -rf $(VENV) $(VENV)-plan build *.egg-info .pytest_cache .ruff_cache .hypothesis
