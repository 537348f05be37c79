# make demo   environment, install, then train → export → build-engine → evaluate, bench and visualize on handwritten
#             digits: a few minutes, ending in accuracy, speed and a picture of which patches live
# make test   environment, then linters, types, tests, the README's own commands
# make runtime-env   an environment without torch, as `pip install 'lifedeploy[onnxruntime]'` makes it, for tests/runtime
# make serve-env   an environment with NVIDIA's Triton server, which tests/serving starts
# make fuzz   bad inputs for every command: mutated files, values of all options; CASES=2000 SEED=0, about ten minutes
# make kill   every command that writes, killed at random moments and run again; KILLS=60 SEED=0, about ten minutes

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(abspath $(VENV))/bin
RUNTIME_VENV := .venv-runtime
SERVE_VENV   := .venv-serve
CASES  ?= 2000
KILLS  ?= 60
SEED   ?= 0

.PHONY: demo test lint suite fuzz kill env runtime-env serve-env clean

env: $(VENV)/.installed

runtime-env: $(RUNTIME_VENV)/.installed

# Bytecode of what is never imported is most of an installation.
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt

define require-python
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "Python 3.11 to 3.13 is needed; run: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
endef

$(VENV)/.installed: pyproject.toml constraints.txt
	$(require-python)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP_INSTALL) -e '.[full,cpu,tensorrt-rtx,ray,dev]'
	touch $@

# Made anew, so that nothing is in it that its extra does not bring.
$(RUNTIME_VENV)/.installed: pyproject.toml constraints.txt
	$(require-python)
	$(PYTHON) -m venv --clear $(RUNTIME_VENV)
	$(RUNTIME_VENV)/bin/python $(PIP_INSTALL) '.[onnxruntime]'
	touch $@

serve-env: $(SERVE_VENV)/.installed

$(SERVE_VENV)/.installed: tests/serving/requirements.txt tests/serving/environment.sh
	PYTHON=$(PYTHON) tests/serving/environment.sh $(SERVE_VENV)

demo: env
	mkdir -p demo
	$(BIN)/python examples/digits/prepare.py --out demo/digits
	cd demo && $(BIN)/lifedeploy train --config ../examples/digits/dense.toml --data digits --resume
	cd demo && $(BIN)/lifedeploy train --config ../examples/digits/life.toml --data digits --resume
	cd demo && $(BIN)/lifedeploy export --backbone test_vit --rho 0.7
	cd demo && $(BIN)/lifedeploy build-engine --fp16
	cd demo && $(BIN)/lifedeploy evaluate --data digits --json accuracy.json
	cd demo && $(BIN)/lifedeploy bench --batch 32 --budget 30 --json bench.json --plot bench.png
	cd demo && $(BIN)/lifedeploy visualize artifacts/test_vit-life-r0.7-64x64px digits/val/3/digit0060.png -o lives.png
	@echo "the pictures: demo/lives.png, demo/bench.png"

test: lint suite

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Python keeps its bytecode even where the environment forbids it: some hundred processes would compile the package each.
suite: env runtime-env serve-env
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

fuzz: env
	$(BIN)/python -m tests.robustness.fuzz --cases $(CASES) --seed $(SEED)

kill: env
	$(BIN)/python -m tests.robustness.kill --kills $(KILLS) --seed $(SEED)

clean:
	rm -rf $(VENV) $(RUNTIME_VENV) $(SERVE_VENV) demo artifacts .mypy_cache .ruff_cache .pytest_cache .hypothesis
