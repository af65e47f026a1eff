# Two commands for a newcomer: `make demo` and `make test`. Everything is installed into $(VENV), nothing outside it.

.DEFAULT_GOAL := help
.PHONY: demo test test-old-pandas debug-test asan-test tsan-test lint bench build clean help

# The first of these that runs, is 3.11 or newer, and brings what an environment and an extension need.
CANDIDATES := python3.11 python3.12 python3.13 python3.14 python3 python
USABLE := import os, sys, sysconfig, venv, ensurepip; \
  sys.exit(sys.version_info < (3, 11) or not os.path.exists(sysconfig.get_path("include") + "/Python.h"))
ifndef PYTHON
PYTHON := $(shell for p in $(CANDIDATES); do \
  if $$p -c '$(USABLE)' >/dev/null 2>&1; then echo $$p; break; fi; done)
endif

VENV ?= .venv
BIN := $(VENV)/bin
# Passed to meson, for instance -Csetup-args=-Dbuildtype=debug.
BUILD_ARGS ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=
# Also run over the plain data plane, which stands in where the native one cannot be had.
PLAIN_TESTS := tests/test_contract.py tests/test_service.py tests/test_adversity.py tests/test_client.py tests/test_fork.py \
  tests/test_payloads_everywhere.py tests/test_workers.py
# The oldest pandas that is supported: what touches pandas is tested with it too. A folder of its own, which stands before
# the environment's on the path; without dependencies but for the one that a newer pandas has no more.
OLD_PANDAS := 2.2
OLD_PANDAS_TESTS := tests/test_payloads_pandas.py tests/test_payloads_everywhere.py tests/test_pickle_refused.py \
  tests/test_keys.py tests/test_signature.py

# meson-python calls meson and ninja by name. The compiled tree lives in the environment, so that the two go together.
PIP := PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip --disable-pip-version-check --quiet
SOURCES := pyproject.toml meson.build $(shell find _native batching runner -type f -not -name '*.pyc')
# The folder `batching` here must never shadow the installed package.
RUN := PYTHONSAFEPATH=1 $(BIN)

help: ## show this list
	@echo "Targets:"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.package $(VENV)/.group-demo ## train a classifier, serve it with two workers, compare batched with unbatched
	$(RUN)/python examples/demo.py

test: $(VENV)/.package $(VENV)/.group-demo $(VENV)/.group-test ## run the tests against the installed package
	BATCHING_DATA_PLANE=plain $(RUN)/pytest $(PYTEST_ARGS) $(PLAIN_TESTS)
	$(RUN)/pytest $(PYTEST_ARGS)

test-old-pandas: $(VENV)/.package $(VENV)/.group-test $(VENV)/.pandas-$(OLD_PANDAS) ## run the tests of payloads with the oldest pandas that is supported
	PYTHONPATH="$(CURDIR)/$(VENV)/pandas-$(OLD_PANDAS)" $(RUN)/python -c 'import pandas; print("pandas", pandas.__version__); \
	  assert pandas.__version__.startswith("$(OLD_PANDAS).")'
	PYTHONPATH="$(CURDIR)/$(VENV)/pandas-$(OLD_PANDAS)" $(RUN)/pytest $(PYTEST_ARGS) $(OLD_PANDAS_TESTS)

debug-test: ## make test with a debug build: C assertions and counters of live objects
	$(MAKE) test VENV=.venv-debug BUILD_ARGS="-Csetup-args=-Dbuildtype=debug -Csetup-args=-Ddebug_counters=true"

# Address and undefined-behaviour sanitizers, in every process of the tests. Python's own allocator would hide what
# the extension modules do with objects; CPython's leaks would hide theirs. What a sanitizer says, pytest must not capture.
SANITIZED_TESTS := tests/test_native_plane.py tests/test_native_wire.py tests/test_adversity.py tests/test_contract.py \
  tests/test_rows.py tests/test_blobs.py tests/test_scheduler.py tests/test_engine.py tests/test_service.py tests/test_client.py \
  tests/test_fork.py tests/test_memory.py tests/test_pipe.py tests/test_plain_arrays.py tests/test_payloads_numpy.py \
  tests/test_payloads_lists.py tests/test_payloads_pandas.py
SANITIZERS = LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libubsan.so)" \
  ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 PYTHONMALLOC=malloc
TSAN_ARGS ?= 1 30 5000

asan-test: ## the native code under address and undefined-behaviour sanitizers (gcc, some minutes)
	$(MAKE) run-asan-test VENV=.venv-asan BUILD_ARGS="-Csetup-args=-Db_sanitize=address,undefined \
	  -Csetup-args=-Db_lundef=false -Csetup-args=-Dbuildtype=debugoptimized -Csetup-args=-Ddebug_counters=true"

run-asan-test: $(VENV)/.package $(VENV)/.group-demo $(VENV)/.group-test
	$(SANITIZERS) $(RUN)/pytest --capture=sys $(PYTEST_ARGS) $(SANITIZED_TESTS)

tsan-test: $(VENV)/.package $(VENV)/.group-test ## the native plane's threads under the thread sanitizer (gcc, some minutes)
	$(RUN)/python tests/native_driver.py thread $(TSAN_ARGS)
	$(RUN)/python tests/native_driver.py address,undefined $(TSAN_ARGS)

lint: $(VENV)/.package $(VENV)/.group-lint ## style, format, types and stubs, on the tree as it is installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd $(VENV) && bin/mypy --config-file "$(CURDIR)/pyproject.toml" --cache-dir "$(CURDIR)/.mypy_cache" -p batching
	cd $(VENV) && bin/stubtest --mypy-config-file "$(CURDIR)/pyproject.toml" \
	  --allowlist "$(CURDIR)/tests/stubtest.allowlist" --ignore-unused-allowlist batching._native

bench: $(VENV)/.package ## run every benchmark (BENCH_ARGS="--json" also writes bench/results)
	@for bench in bench/bench_*.py; do echo "== $$bench"; $(RUN)/python $$bench $(BENCH_ARGS) || exit 1; done

build: $(VENV)/.package ## make the wheel and the sdist in dist/
	$(PIP) wheel --no-deps --no-build-isolation $(BUILD_ARGS) -w dist .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -c "import mesonpy; print(mesonpy.build_sdist('dist'))"

clean: ## remove everything that was built or installed here
	rm -rf .venv .venv-debug .venv-asan build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.pip:
ifeq ($(strip $(PYTHON)),)
	@echo "No usable Python found. Needed: CPython 3.11 or newer with venv and its C headers; tried: $(CANDIDATES)." >&2
	@echo "Name one: make PYTHON=/path/to/python3.11 ..." >&2
	@exit 1
else
	@echo "environment: $(VENV), made with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --upgrade pip
	@touch $@
endif

# Dependency groups of pyproject.toml; older pips do not know --group, the upgraded one does.
$(VENV)/.group-%: pyproject.toml | $(VENV)/.pip
	@echo "installing the dependency group $*"
	@$(PIP) install --group $*
	@touch $@

$(VENV)/.pandas-%: | $(VENV)/.pip
	@echo "installing pandas $* beside the environment's"
	@rm -rf $(VENV)/pandas-$*
	@$(PIP) install --target $(VENV)/pandas-$* --no-deps --only-binary=:all: "pandas==$*.*" pytz || \
	  { echo "pandas $* cannot be had for this Python from pip's package index: nothing was tested with it." >&2; exit 1; }
	@touch $@

# Installed as users have it, not editable: what is tested is what a wheel holds.
$(VENV)/.package: $(SOURCES) $(VENV)/.group-build
	@echo "building and installing adaptive-batching"
	@$(PIP) install --no-build-isolation -Cbuild-dir=$(VENV)/build $(BUILD_ARGS) .
	@touch $@
