# make demo   environment, install, then export → build-engine → bench, ending in a table and a plot
# make test   environment, then linters, types, tests, the README's own commands

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(abspath $(VENV))/bin

.PHONY: demo test env clean

env: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "Python 3.11 to 3.13 is needed; run: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cpu,dev]'
	touch $@

demo: env
	mkdir -p demo
	cd demo && $(BIN)/lifedeploy export --backbone deit_s --rho 0.7
	cd demo && $(BIN)/lifedeploy build-engine --fp16
	cd demo && $(BIN)/lifedeploy bench --batch 8 --json bench.json --plot bench.png
	@echo "the plot: demo/bench.png"

test: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

clean:
	rm -rf $(VENV) demo artifacts .mypy_cache .ruff_cache .pytest_cache
