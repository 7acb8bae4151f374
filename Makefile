# Every target installs what it needs. `make` alone lists them.
PYTHON ?= python3
BIN := .venv/bin
PROFILE ?= smoke
# The lock holds the exact versions; torch has no local version suffix, so pip takes the build of this platform.
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help setup reproduce test lab check cluster clean

help: ## this list
	@grep -E '^[a-z]+:.*## ' Makefile | sed 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) ## .venv with the locked dependencies

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 15) else "Python 3.11 to 3.14 is needed, this is " + sys.version.split()[0] + "; set PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

reproduce: setup ## run the study headless (PROFILE=smoke): notebooks, tables, figures
	$(BIN)/python -m boom_utils run --profile $(PROFILE)

test: setup ## lint, types and all tests, notebooks included
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/python -m pytest

# Root is who works in a container; Jupyter asks root to say so. tools/jupyter: it asks nothing about news.
lab: setup ## JupyterLab on the notebooks
	JUPYTER_CONFIG_PATH="$(CURDIR)/tools/jupyter:$(JUPYTER_CONFIG_PATH)" GOMP_SPINCOUNT=2000 $(BIN)/python -m jupyterlab \
	  --notebook-dir . --LabApp.default_url=/lab/tree/notebooks/01_data.ipynb $(if $(filter 0,$(shell id -u)),--allow-root)

check: setup ## versions, devices, disk space
	$(BIN)/python -m boom_utils check

cluster: setup ## .venv-cluster with Snakemake, for studies on several machines (docs/cluster.md)
	$(PYTHON) -m venv .venv-cluster
	.venv-cluster/bin/python -m pip install --quiet --disable-pip-version-check -r workflow/requirements.lock

clean: ## remove the workspace and smoke results (not .venv)
	rm -rf workspace results/smoke
