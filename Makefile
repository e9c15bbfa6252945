# Each target works alone on a fresh clone: Python 3.11+ and make are all it takes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CHECKOV := .venv-checkov

# Tools of this tree read the project where it is; nothing of the caller's Python leaks in.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV
export PIP_DISABLE_PIP_VERSION_CHECK := 1

BENCH ?= latency throughput relay fanout connections writers write text outage
ARGS ?=
MINUTES ?= 10
WORKERS ?= 2

.PHONY: help setup up demo test lint format bench soak synth checkov docs lock clean environment-named

help:
	@echo "make setup   the virtual environment in $(VENV), with what tests and checks need"
	@echo "make up      the whole platform on this machine (ARGS='--fresh' and others: $(BIN)/cloudsync dev --help)"
	@echo "make demo    a real workload, watched by clients, checked against SQL"
	@echo "make test    all tests              (ARGS='tests/unit -k name')"
	@echo "make lint    ruff, mypy, import boundaries"
	@echo "make bench   every benchmark        (BENCH='latency writers')"
	@echo "make synth   the AWS templates of an environment (ENV=prod), checked; needs Node, no account"
	@echo "make checkov what checkov says of those templates; each finding has its reason"
	@echo "make soak    clients watch while processes are killed (MINUTES=10)"
	@echo "make format  let ruff format and mend"
	@echo "make docs    write the reference pages (runbooks/reference) from their registries"
	@echo "make lock    resolve the dependencies anew"
	@echo "make clean   remove what was built (not the data in .cloudsync)"

# The environment

$(VENV)/.made:
	@command -v "$(PYTHON)" >/dev/null 2>&1 || { \
	  echo "make: there is no $(PYTHON); install Python 3.11 or newer, or name one: make PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: $(PYTHON) is $$("$(PYTHON)" -V 2>&1); CloudSync needs 3.11 or newer: make PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "make: $(PYTHON) cannot make virtual environments; install its venv package (python3-venv)" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	@touch $@

$(VENV)/.runtime: requirements/build.lock requirements/runtime.lock pyproject.toml $(VENV)/.made
	$(BIN)/python -m pip install --quiet --requirement requirements/build.lock --requirement requirements/runtime.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: requirements/dev.lock requirements/deploy.lock $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --requirement requirements/dev.lock --requirement requirements/deploy.lock
	@touch $@

setup: $(VENV)/.dev

# Running

up: $(VENV)/.runtime
	@exec $(BIN)/cloudsync dev $(ARGS)

demo: $(VENV)/.runtime
	@exec $(BIN)/cloudsync demo $(ARGS)

bench: $(VENV)/.dev
	@mkdir -p bench-results
	@set -e; for scenario in $(BENCH); do \
	  $(BIN)/cloudsync bench $$scenario --json bench-results/$$scenario.json $(ARGS); done

soak: $(VENV)/.runtime
	@exec $(BIN)/cloudsync soak --minutes $(MINUTES) $(ARGS)

# Checking

# Most tests wait for processes to die and come back, so a few of them share the processors well.
test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses=$(WORKERS) --no-loadscope-reorder $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mypy app.py stacks
	$(BIN)/lint-imports --no-cache

docs: $(VENV)/.runtime
	$(BIN)/cloudsync reference runbooks/reference

format: $(VENV)/.dev
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# Deploying

synth: environment-named $(VENV)/.dev
	@JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION=20 $(BIN)/python app.py $(ENV)
	@echo "Templates are in cdk.out; deploy them with: npx aws-cdk@2.1148.1 deploy -c env=$(ENV) 'CloudSync-$(ENV)/*'"

environment-named:
	@[ -n "$(ENV)" ] || { echo "make: say which environment: make synth ENV=prod" >&2; exit 1; }

# checkov's pins conflict with ours: it has an environment of its own.
$(CHECKOV)/.made: requirements/checkov.lock $(VENV)/.made
	"$(PYTHON)" -m venv $(CHECKOV)
	$(CHECKOV)/bin/python -m pip install --quiet --requirement requirements/checkov.lock
	@touch $@

checkov: $(VENV)/.dev $(CHECKOV)/.made
	CLOUDSYNC_CHECKOV=$(CHECKOV)/bin/checkov $(BIN)/python -m pytest -q tests/stacks/test_checkov.py

# Upkeep

COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --no-annotate --no-header

lock: $(VENV)/.dev
	$(COMPILE) requirements/build.in --output-file requirements/build.lock
	$(COMPILE) pyproject.toml --output-file requirements/runtime.lock
	$(COMPILE) --extra dev pyproject.toml --output-file requirements/dev.lock
	$(COMPILE) --extra deploy --constraint requirements/dev.lock pyproject.toml --output-file requirements/deploy.lock
	$(COMPILE) requirements/checkov.in --output-file requirements/checkov.lock
	$(COMPILE) --extra aws --constraint requirements/deploy.lock pyproject.toml --output-file requirements/aws.lock

clean:
	rm -rf $(VENV) $(CHECKOV) build dist bench-results cdk.out .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
	rm -rf runtime/*.egg-info
