# make env | quickstart | demo | test | test-slow | lint | bench. Each sets up .venv first; needs Python 3.11+, pip and make only.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PREFECT_SERVER_ANALYTICS_ENABLED := false

.PHONY: env quickstart demo test test-slow lint format bench lock clean

env: $(STAMP)

$(STAMP): requirements.lock pyproject.toml infra/install.sh
	@PYTHON="$(PYTHON)" sh infra/install.sh $(VENV)
	@touch $@

quickstart: env
	$(BIN)/rdm quickstart --root build/quickstart

demo: env
	$(BIN)/rdm serve --demo --open

# Databases flush what they write: where there is a disk in memory, with 2 GB free, tests use it.
MEMORY_DISK = $(shell df -Pk /dev/shm 2>/dev/null | awk 'NR == 2 && $$4 > 2000000 {print "/dev/shm"}')

test: env
	PYTEST_DEBUG_TEMPROOT=$(MEMORY_DISK) $(BIN)/python -m pytest -n auto

test-slow: env
	$(BIN)/python -m pytest -m slow --timeout 1800 -n 0

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check rdm flows tests benchmarks
	$(BIN)/pyright
	$(BIN)/lint-imports

format: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format rdm flows tests benchmarks

bench: env
	$(BIN)/python -m benchmarks

# All extras but c2pa, which is installed beside them by those who sign.
LOCKED = train flows samples serve tensorboard wandb notebooks
lock:
	uv pip compile pyproject.toml $(addprefix --extra ,$(LOCKED)) --group dev --universal --generate-hashes --python-version 3.11 \
	  --no-emit-index-url -o requirements.lock

clean:
	rm -rf build .pytest_cache .ruff_cache .hypothesis
