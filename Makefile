PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FIND_LINKS := $(shell pip config get global.find-links 2>/dev/null)
export UV_HTTP_TIMEOUT := 300

.PHONY: test lint setup

setup: $(VENV)/.stamp

$(VENV)/.stamp: requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --compile-bytecode $(addprefix --find-links ,$(FIND_LINKS)) -r requirements.txt
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --editable .
	touch $@

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
