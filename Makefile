# Every target makes the virtual environment it needs first; a current one costs milliseconds.
# Settings, on the command line or in the environment:
#   CONSTRAINTS  constraints file for pip; empty for none          make demo CONSTRAINTS=
#   PIP_ARGS     more arguments for pip, an index for example      make setup PIP_ARGS='--index-url ...'
#   PYTHON       the interpreter to start from, 3.11 or newer      make setup PYTHON=python3.12
#   QUICK        anything but 0: tiny sizes, the same path         make demo QUICK=1
#   PYTEST_ARGS  more arguments for pytest                         make test PYTEST_ARGS='-m "not slow"'

CONSTRAINTS ?= constraints.txt
PIP_ARGS ?=
PYTHON ?= python3
QUICK ?=
PYTEST_ARGS ?=
DEMO_DIR ?= demo_run

VENV := .venv
BIN := $(VENV)/bin
QUICK_FLAG := $(if $(filter-out 0,$(QUICK)),--quick)

# Tests, demo and benches run several processes side by side; with a thread per core in each of
# them two cores spend their time switching.
OMP_NUM_THREADS ?= 1
export OMP_NUM_THREADS
# Nothing here needs a model hub, so a stray look-up is an error at once and not a hang.
HF_HUB_OFFLINE ?= 1
export HF_HUB_OFFLINE
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# The stamp holds the settings it was made with. Other settings mean another torch, and pip would
# keep the one that is there, so the environment is then made afresh.
STAMP := $(VENV)/.setup-settings
SETTINGS := $(PYTHON) | $(CONSTRAINTS) | $(PIP_ARGS)
ifneq ($(strip $(shell cat $(STAMP) 2>/dev/null)),$(strip $(SETTINGS)))
VENV_FLAGS := --clear
$(STAMP): FORCE
endif

.DEFAULT_GOAL := help
.PHONY: help setup demo example-antibody test lint format bench protos clean distclean FORCE

help: ## Print the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@awk '/^# Settings/ {on = 1} /^$$/ {on = 0} on {print substr($$0, 3)}' $(firstword $(MAKEFILE_LIST))

$(STAMP): pyproject.toml $(wildcard $(CONSTRAINTS))
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit(f"Python 3.11 or newer is needed, $(PYTHON) is {sys.version.split()[0]}; name another with PYTHON=")'
	$(PYTHON) -m venv $(VENV_FLAGS) $(VENV)
	$(BIN)/python -m pip install $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) $(PIP_ARGS) -e '.[server,trainer,dev]'
	@printf '%s\n' $(call quoted,$(SETTINGS)) > $@

# A single shell word that holds $(1), whatever quotes are in it.
quoted = '$(subst ','\'',$(1))'

setup: $(STAMP) ## Make the virtual environment .venv with everything in it
	@echo "$(VENV) is ready"

demo: $(STAMP) ## Distil a small teacher on real text over gRPC and write a report (QUICK=1: tiny)
	$(BIN)/distill demo --work-dir $(DEMO_DIR) $(QUICK_FLAG)

example-antibody: $(STAMP) ## Distil AntiBERTy, which pip downloads (97 MB), and write a report (QUICK=1: tiny)
	$(BIN)/python -m examples.antibody $(QUICK_FLAG)

test: $(STAMP) ## Run the tests
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(STAMP) ## Check format, style, types, the proto file and that its stubs are current
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/buf lint
	$(BIN)/python -m protos.generate --check

format: $(STAMP) ## Rewrite the sources in the house format and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP) ## Run every benchmark (QUICK=1: short runs)
	$(BIN)/python -m tests.bench all $(QUICK_FLAG)

protos: $(STAMP) ## Generate the stubs from protos/teacher.proto
	$(BIN)/python -m protos.generate

clean: ## Remove caches, builds, benchmark results and the demo's folder
	rm -rf $(DEMO_DIR) bench_results build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find masked_diffusion protos student_trainer teacher_server tests -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## The same, and the virtual environment
	rm -rf $(VENV)
