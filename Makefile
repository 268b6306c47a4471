# make report: the whole pipeline, from nothing.  make test: lint and tests.  Both set up .venv by themselves.

PYTHON ?= python3
# Packages beyond the needed ones. tensorrt brings NVIDIA's proprietary builder: `make report EXTRAS=` leaves it out.
EXTRAS ?= tensorrt
VENV := .venv
# Python keeps what it compiled: without that each of a run's processes would compile its imports anew.
unexport PYTHONDONTWRITEBYTECODE
RUN := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"
# --no-compile: Python compiles what is imported, on first use; compiling all of it would take longer than the download.
PIP := $(VENV)/bin/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt
# Two tests at a time: many wait for the tools that they start.
PYTEST := python -m pytest -n 2 --dist worksteal

.PHONY: report study test test-slow test-all lint setup clean

report: setup
	@$(RUN) snakemake --cores all --quiet rules host reason -- reports/final.html
	@echo; $(RUN) picollm summary; echo; echo "Report: $(CURDIR)/reports/final.html"

study: setup
	@$(RUN) snakemake --cores all --quiet rules host reason -- study/study.json

test: $(VENV)/dev lint
	@$(RUN) $(PYTEST)

test-slow: $(VENV)/dev
	@$(RUN) $(PYTEST) -m 'slow and not exhaustive' --durations 15

test-all: $(VENV)/dev lint
	@$(RUN) $(PYTEST) -m ''

lint: $(VENV)/dev
	@$(RUN) ruff check . && $(RUN) ruff format --check . && $(RUN) snakefmt --check Snakefile rules
	@$(RUN) snakemake --lint

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 14) else f"Python 3.11 to 3.13 is needed, $(PYTHON) is {v[0]}.{v[1]}: make $(MAKECMDGOALS) PYTHON=python3.12")'
	@echo "Installing into $(VENV) (about two minutes) ..."
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@$(PIP) -e '.$(if $(EXTRAS),[$(EXTRAS)])'
	@touch $@

$(VENV)/dev: $(VENV)/ready
	@$(PIP) -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) .snakemake logs
