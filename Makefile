# Everything a checkout needs, from Python 3.11 and make alone. `make` lists the targets.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/sh
BIN := .venv/bin
# One process for each processor, as the tests wait for servers more than they compute.
WORKERS ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: run
run: .venv/demo ## See all six jobs at work on a private PostgreSQL and Valkey, until Ctrl-C
	@exec $(BIN)/python -m backendops.demo

.PHONY: test
test: .venv/dev servers celeries ## Run every test on real servers
	$(PYTEST) --durations=10 $(TESTS)

.PHONY: check
check: .venv/dev ## Lint, types, and whether generated files are current
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m tests.generated --check

.PHONY: bench
bench: .venv/dev servers ## Measure against what people use today, on 2,000,000 rows (ARGS="--rows 300000 --rounds 1" is quick)
	$(BIN)/python -m bench $(ARGS)

.PHONY: chaos
chaos: .venv/dev ## SIGKILL every changing command 200 times and the server 20 times: nothing may be lost (a quarter of an hour; ARGS="--kills 20" is quick)
	$(BIN)/python -m chaos $(ARGS)

.PHONY: servers
servers: .venv/dev ## Fetch what is in no wheel (Prometheus, PgBouncer, PostgreSQL 14, ...) into .cache; nothing is installed
	@$(BIN)/python tests/fetch_servers.py || test "$$CI" != true
	@$(BIN)/python tests/fetch_redis.py || test "$$CI" != true

.PHONY: celeries
celeries: .venv/dev ## Install old versions of Celery into .cache, each by itself, whose results the tests read
	@$(BIN)/python tests/fetch_celery.py || test "$$CI" != true

.PHONY: setup
setup: .venv/dev ## Make the virtual environment that the other targets use

.PHONY: format
format: .venv/dev ## Format the code and write the generated files again
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format
	$(BIN)/python -m tests.generated

.PHONY: lock
lock: .venv/dev ## Choose the newest versions that pyproject.toml allows, and pin them with their hashes
	$(UV) pyproject.toml --group build --extra demo --upgrade --output-file requirements.lock
	$(UV) pyproject.toml --group build --extra demo --extra dev --constraint requirements.lock --upgrade --output-file requirements-dev.lock

# Without a host name: where packages come from is the business of the machine that installs them.
UV := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	--no-emit-index-url --no-emit-find-links

.PHONY: dist
dist: .venv/dev ## Build the wheel
	rm -rf build dist
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

.PHONY: clean
clean: ## Remove everything that the other targets made
	rm -rf .venv .cache build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Sets $python to the first Python that can do it: the names a version manager leaves behind may not even run.
FIND_PYTHON = for python in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
		"$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && break; \
		python=; \
	done; \
	if [ -z "$$python" ]; then \
		echo "backendops needs Python 3.11, 3.12 or 3.13 on PATH; if it has another name: make PYTHON=/path/to/python3.12" >&2; \
		exit 1; \
	fi

.venv/bin/pip:
	@$(FIND_PYTHON); \
	echo "making a virtual environment with $$("$$python" --version)"; \
	rm -rf .venv; \
	if "$$python" -c 'import ensurepip' 2>/dev/null; then \
		"$$python" -m venv .venv; \
	elif "$$python" -m venv --without-pip .venv 2>/dev/null && "$$python" -m pip --python .venv install --quiet pip 2>/dev/null; then \
		:; \
	else \
		rm -rf .venv; \
		echo "$$python cannot make a virtual environment: on Debian and Ubuntu, apt install python3-venv" >&2; \
		exit 1; \
	fi

PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install

.venv/demo: requirements.lock pyproject.toml | .venv/bin/pip
	@if [ ! -e .venv/dev ]; then echo "installing backendops and the servers of the demo"; \
		$(PIP) --require-hashes --requirement requirements.lock && $(INSTALL); fi
	@touch $@

.venv/dev: requirements-dev.lock pyproject.toml | .venv/bin/pip
	@echo "installing backendops and what its tests need"
	@$(PIP) --require-hashes --requirement requirements-dev.lock && $(INSTALL)
	@touch $@

# Its build needs setuptools, which the lock file pins: nothing is fetched by name alone. setuptools warns about every
# editable installation there is.
INSTALL := PYTHONWARNINGS=ignore $(PIP) --no-deps --no-build-isolation --editable .
