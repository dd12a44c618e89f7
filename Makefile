# The two set-up commands are `make table` and `make test`; `make env` alone makes the environment.
PYTHON ?= python3
CORES ?= $(shell $(PYTHON) -c "import os; print(os.cpu_count())")
BIN := .venv/bin

.PHONY: env table test faults mutants corruptions lint lock wheel clean-env

env: .venv/installed

.venv/installed: envs/requirements.lock pyproject.toml
	@$(PYTHON) -c "import sys; ok = (3, 11) <= sys.version_info[:2] <= (3, 12); \
	sys.exit(None if ok else 'make: %s is Python %s; 3.11 or 3.12 is needed: make PYTHON=python3.12 ...' % (sys.executable, sys.version.split()[0]))"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r envs/requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.venv/installed-dev: .venv/installed envs/requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r envs/requirements-dev.lock
	@touch $@

# The default configuration: tables and pictures of scikit-learn's digits in results/.
table: env
	$(BIN)/snakemake --cores $(CORES) --quiet progress rules host
	@echo; cat results/table.md; echo; echo "Pictures: results/figures/samples.png and the others beside it."

test: .venv/installed-dev lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# What clusters do to jobs, done to a real run on a throw-away Slurm cluster: forty minutes, as root.
faults: .venv/installed-dev
	$(BIN)/python tests/faults.py

# Every line of the mathematics, metrics and stages broken, and whether the tests notice: hours on two cores. Of one
# module: make mutants ONLY=ddpm/bound.py; of at most 50 mutants of each: make mutants ONLY="--sample 50"
mutants: .venv/installed-dev
	$(BIN)/python tests/mutants.py --cores $(CORES) $(ONLY)

# 200 random corruptions of a finished tiny tree, each healed by at most two runs: some minutes.
corruptions: .venv/installed-dev
	$(BIN)/python tests/corruption.py 200

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile workflow/rules
	$(BIN)/snakemake --lint

# Pin again what requirements*.in name, with hashes and without an index's address.
lock:
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	  --no-annotate envs/requirements.in -o envs/requirements.lock
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	  --no-annotate -c envs/requirements.lock envs/requirements-dev.in -o envs/requirements-dev.lock

# A wheel to install elsewhere, in dist/: nothing of what an earlier build left goes into it.
wheel: env
	rm -rf build
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .

clean-env:
	rm -rf .venv
