# One front door: every target makes its own environment in .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STUDIES := $(sort $(wildcard validation/*.py validation/benchmarks/*.py))
NOTEBOOKS := $(sort $(wildcard tutorials/*.ipynb))

# Two worker processes of one thread each; both may be overridden.
export OMP_NUM_THREADS ?= 1
PYTEST_WORKERS ?= 2

.PHONY: help demo test lint validate tutorials clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.test ## recover a known truth, then align a small policy; writes demo_output/report.html
	$(BIN)/python validation/first_light.py --out demo_output
	$(BIN)/mixlogit-align demo --out demo_output
	@test -s demo_output/report.html

test: lint ## lint, then every test
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --durations=15 $(PYTEST_ARGS)

lint: $(VENV)/.test ## ruff (rules and format) and strict mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

validate: $(VENV)/.test ## every study in validation/, without a time limit; fails if one of them does
	@failed=; for study in $(STUDIES); do \
	    grep -q '__name__ == "__main__"' $$study || continue; \
	    echo "== $$study"; $(BIN)/python $$study || failed="$$failed $$study"; \
	done; test -z "$$failed" || { echo "failed:$$failed" >&2; exit 1; }

tutorials: $(VENV)/.tutorials ## execute the notebooks in full; writes build/tutorials/*.html
	$(BIN)/jupyter nbconvert --execute --to html --output-dir build/tutorials $(NOTEBOOKS)

clean: ## remove the environment, caches and outputs
	rm -rf $(VENV) build dist demo_output .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The file .venv/.EXTRA says that this extra was installed from the present metadata and pins.
$(VENV)/.%: pyproject.toml constraints.txt | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$*]"
	@touch $@

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "got $$($(PYTHON) --version 2>&1); expected Python 3.11 or newer; try make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
