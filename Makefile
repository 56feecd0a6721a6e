# Two commands matter: `make demo` runs the main job, `make test` passes the tests. Both set themselves up in .venv.
SHELL  := /bin/bash -o pipefail
TORCH  ?= torch==2.13.0
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# The first Python here that is new enough; `make PYTHON=/path/to/python3.12 ...` chooses another.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
            $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
# pip's own words, without one line for each package that it looks at.
PIP    := $(BIN)/python -m pip install --disable-pip-version-check
SHOWN  := grep --line-buffered -E 'Downloading|Installing collected|rror' || true

.PHONY: install demo test check format bench clean

install: $(STAMP)

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "Interlace needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@echo "[1/3] virtual environment in $(VENV), with $$($(PYTHON) --version)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) --quiet --upgrade pip
	@echo "[2/3] $(TORCH) (TORCH='torch==2.13.0+cpu ...' takes another build)"
	@$(PIP) $(TORCH) | { $(SHOWN); }
	@echo "[3/3] interlace and what it needs"
	@$(PIP) --editable '.[all,dev]' $(TORCH) | { $(SHOWN); }
	@touch $@

demo: install
	@$(BIN)/interlace demo

# Two folders of tests at a time, since many of them wait for processes; `make PYTEST=--numprocesses=0 test` runs one.
# What fails so is run once more alone, and must pass: a machine that stood still for a second is not a fault of ours,
# a test that leans on that second is. Both runs are printed.
test: check
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadscope --no-loadscope-reorder $(PYTEST) || { test $$? = 1 && \
	    echo "What failed, once more and alone:" && $(BIN)/python -m pytest --last-failed --last-failed-no-failures=none; }

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install
	$(BIN)/python benchmarks/all.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
