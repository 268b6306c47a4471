# make report: the whole pipeline, from nothing.  make check: lint and the quick tests, in a minute.  make test: all but
# the slow ones.  Each sets up .venv by itself.

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
# --no-compile: Python compiles what is imported, on first use; compiling all of it would take longer than the download.
PIP := $(VENV)/bin/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt
# Two tests at a time: many wait for the tools that they start.
PYTEST := python -m pytest -n 2 --dist worksteal

# Commands in .venv name the folder that they were installed in: a clone that was moved or copied needs them anew.
MOVED := $(shell test -s $(VENV)/ready && test "$$(cat $(VENV)/ready)" != "$$(pwd -P)" && echo moved)

.PHONY: report study bench-full gpu setup-nsys setup-browser test-tensorrt check test test-slow test-slurm test-walk test-all lint format setup clean moved

report: setup
	@$(RUN) snakemake --cores all --quiet rules host reason -- reports/final.html
	@echo; $(RUN) picollm summary; echo; echo "Report: $(CURDIR)/reports/final.html"

study: setup
	@$(RUN) snakemake --cores all --quiet rules host reason -- study/study.json

# Every backend, output and batch size, the gate on the whole validation split: into bench/. NNCF is for int8.
bench-full: setup
	@$(PIP) -e '.[int8]'
	@$(RUN) snakemake --cores all --quiet rules host reason -- data/model/model.safetensors data/tokens/manifest.json
	@$(RUN) picollm optimize --full --output bench

# With the machine's own Python, which has the PyTorch of its GPU: into gpu/.
gpu:
	@$(PYTHON) benchmarks/gpu.py

# Nsight Systems from Debian's packages; needs root.
setup-nsys:
	@.ci/install-nsys

# Chromium from Debian's packages, for tests of the report's page; needs root.
setup-browser:
	@apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends chromium

# About 5 GB: PyTorch's CUDA build with torch-tensorrt-rtx. No GPU needed.
test-tensorrt:
	@test -d .venv-tensorrt || $(PYTHON) -m venv .venv-tensorrt
	@.venv-tensorrt/bin/python -m pip install --quiet --no-compile -r tests/tensorrt.txt
	@PYTHONPATH=. .venv-tensorrt/bin/python tests/tensorrt_build.py

check: $(VENV)/dev format
	@$(RUN) $(PYTEST) -m 'not slow and not exhaustive and not tools'

test: $(VENV)/dev lint
	@$(RUN) $(PYTEST)

test-slow: $(VENV)/dev
	@$(RUN) $(PYTEST) -m 'slow and not exhaustive' --durations 15

# A real Slurm on loopback, all of it; CI takes FEW='and not exhaustive'. The plugin lies beside .venv's packages, as it
# adds seconds to every call of snakemake where Slurm's commands are installed and no Slurm answers.
test-slurm: $(VENV)/dev
	@.ci/install-slurm
	@$(PIP) --upgrade --no-deps --target $(VENV)/slurm snakemake-executor-plugin-slurm snakemake-executor-plugin-slurm-jobstep throttler
	@$(RUN) PYTHONPATH="$(CURDIR)/$(VENV)/slurm" python -m pytest -m "slurm $(FEW)" tests/test_slurm.py --durations 5

# Random sequences of deeds: make test-walk WALKS=1000 SEED=7
test-walk: $(VENV)/dev
	@$(RUN) WALKS=$(or $(WALKS),100) SEED=$(or $(SEED),0) $(PYTEST) -m walk

test-all: $(VENV)/dev lint
	@$(RUN) $(PYTEST) -m ''

lint: format
	@$(RUN) snakemake --lint

format: $(VENV)/dev
	@$(RUN) ruff check . && $(RUN) ruff format --check . && $(RUN) snakefmt --check Snakefile rules && $(RUN) pyrefly check --output-format min-text

setup: $(VENV)/ready

moved:
	@echo "This clone was moved or copied from $$(cat $(VENV)/ready): its $(VENV) is made anew."
	@rm -rf $(VENV)

$(VENV)/ready: pyproject.toml constraints.txt $(MOVED)
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 14) else f"Python 3.11 to 3.13 is needed, $(PYTHON) is {v[0]}.{v[1]}: make $(MAKECMDGOALS) PYTHON=python3.12")'
	@echo "Installing into $(VENV) (about two minutes) ..."
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@$(PIP) -e '.$(if $(EXTRAS),[$(EXTRAS)])'
	@pwd -P > $@

$(VENV)/dev: $(VENV)/ready
	@$(PIP) -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) .venv-tensorrt .snakemake logs
