# `make help` lists the targets. Each sets up .venv automatically.

PYTHON ?= python3
# Packages beyond the needed ones. tensorrt brings NVIDIA's proprietary builder: `make report EXTRAS=` leaves it out.
EXTRAS ?= tensorrt
VENV := .venv
# Python keeps what it compiled: without that each of a run's processes would compile its imports anew.
unexport PYTHONDONTWRITEBYTECODE
# Snakemake and others keep caches in the home folder; where it can't be written, here.
CACHES := $(shell d="$${XDG_CACHE_HOME:-$$HOME/.cache}"; mkdir -p "$$d" 2>/dev/null && test -w "$$d" || echo "$(CURDIR)/.cache")
ifneq ($(CACHES),)
export XDG_CACHE_HOME := $(CACHES)
export MPLCONFIGDIR := $(CACHES)/matplotlib
endif
RUN := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"
INSTALL := $(VENV)/bin/python .ci/install.py
# Two tests at a time: many wait for the tools that they start. Threads that wait for each other must not spin meanwhile:
# of two such processes on two cores each would hold up the other.
PYTEST := OMP_WAIT_POLICY=passive python -m pytest -n 2 --dist worksteal

# Commands in .venv name the folder that they were installed in: a clone that was moved or copied needs them anew.
MOVED := $(shell test -s $(VENV)/ready && test "$$(cat $(VENV)/ready)" != "$$(pwd -P)" && echo moved)

.PHONY: report study bench-full gpu docs setup-nsys setup-browser test-tensorrt check test test-slow test-slurm test-walk test-all lint format setup clean moved help

report: setup ## the complete pipeline, from nothing; prints what was learned
	@$(RUN) snakemake --cores all --quiet rules host reason -- reports/final.html
	@echo; $(RUN) picollm summary; echo; echo "Report: $(CURDIR)/reports/final.html"

study: setup ## every causal analysis of the heads, into study/; resumes where it stopped
	@$(RUN) snakemake --cores all --quiet rules host reason -- study/study.json

# The gate uses the complete validation split. NNCF is for int8.
bench-full: setup ## time all backends, outputs and batch sizes, into bench/
	@$(INSTALL) -e '.[int8]'
	@$(RUN) snakemake --cores all --quiet rules host reason -- data/model/model.safetensors data/tokens/manifest.json
	@$(RUN) picollm optimize --full --output bench

gpu: ## everything that needs a GPU, with the Python that has its PyTorch (PYTHON=...), into gpu/
	@$(PYTHON) benchmarks/gpu.py

setup-nsys: ## install Nsight Systems from Debian's packages; needs root
	@.ci/install-nsys

setup-browser: ## install Chromium from Debian's packages, for tests of the report's page; needs root
	@apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends chromium

test-tensorrt: ## build with torch-tensorrt: about 5 GB of packages, no GPU needed
	@test -d .venv-tensorrt || $(PYTHON) -m venv .venv-tensorrt
	@.venv-tensorrt/bin/python -m pip install --quiet --no-compile -r tests/tensorrt.txt
	@PYTHONPATH=. .venv-tensorrt/bin/python tests/tensorrt_build.py

check: $(VENV)/dev format ## style, types and the tests that take less than a second each
	@$(RUN) $(PYTEST) -m 'not slow and not exhaustive and not heavy'

test: $(VENV)/dev lint ## lint and the fast suite, two tests at a time
	@$(RUN) $(PYTEST)

test-slow: $(VENV)/dev ## the tests that take long or need system packages
	@$(RUN) $(PYTEST) -m 'slow and not exhaustive' --durations 15

# The plugin is installed apart from .venv's packages: where Slurm's commands are installed and no Slurm answers, it adds
# seconds to every call of snakemake.
test-slurm: $(VENV)/dev ## run the workflow on a real Slurm of two nodes that it starts here; needs root
	@.ci/install-slurm
	@$(INSTALL) --upgrade --no-deps --target $(VENV)/slurm snakemake-executor-plugin-slurm snakemake-executor-plugin-slurm-jobstep throttler
	@$(RUN) PYTHONPATH="$(CURDIR)/$(VENV)/slurm" python -m pytest -m "slurm $(FEW)" tests/test_slurm.py --durations 5

test-walk: $(VENV)/dev ## random sequences of events; WALKS=1000 SEED=7
	@$(RUN) WALKS=$(or $(WALKS),100) SEED=$(or $(SEED),0) $(PYTEST) -m walk

test-all: $(VENV)/dev lint ## everything, with the variations that CI leaves out
	@$(RUN) $(PYTEST) -m ''

lint: format ## format, and Snakemake's linter
	@$(RUN) snakemake --lint

format: $(VENV)/dev ## check style, spelling and types
	@$(RUN) codespell && $(RUN) ruff check . && $(RUN) ruff format --check . && $(RUN) snakefmt --check Snakefile rules && $(RUN) pyrefly check --output-format min-text

setup: $(VENV)/ready ## install into .venv

moved:
	@echo "This clone was moved or copied from $$(cat $(VENV)/ready): its $(VENV) is made anew."
	@rm -rf $(VENV)

$(VENV)/ready: pyproject.toml constraints.txt $(MOVED)
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 14) else f"Python 3.11 to 3.13 is needed, $(PYTHON) is {v[0]}.{v[1]}: make $(MAKECMDGOALS) PYTHON=python3.12")'
	@echo "Installing into $(VENV) (about a minute) ..."
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@$(INSTALL) -e '.$(if $(EXTRAS),[$(EXTRAS)])'
	@pwd -P > $@

$(VENV)/dev: $(VENV)/ready
	@$(INSTALL) -e '.[dev]'
	@touch $@

# Without --quiet, which would hide warnings from the strict mode too.
docs: $(VENV)/ready ## build the documentation as a site, into site/; a broken link is an error
	@$(INSTALL) -e '.[docs]'
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build
	@echo "Documentation: $(CURDIR)/site/index.html"

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

clean: ## remove .venv, Snakemake's records and logs
	rm -rf $(VENV) .venv-tensorrt .snakemake logs
