# Every command does its own set-up. `make` alone lists them.
#
#   PYTHON=python3.12   the Python that makes the environment   (default: python3, else python3.13 to python3.10)
#   VENV=.venv          the environment                         (default: .venv)
#   PORT=8888 DATA=dir LABEL=has_dr
#                       for `make lab` and `make app`: port, a folder of your own photographs, what to grade them by
#   OUT=runs/demo       for `make demo`: the folder that the run is written to

PYTHON ?=
VENV ?= .venv
PORT ?=
DATA ?=
LABEL ?=
OUT ?= runs/demo

STAMP := $(VENV)/.ready
BIN := $(if $(filter /%,$(VENV)),$(VENV),$(CURDIR)/$(VENV))/bin
IN := env PATH="$(BIN):$$PATH"
# Notebooks and tests run on one thread, and what they cache stays with the environment.
TESTENV := $(IN) OMP_NUM_THREADS=1 JOINTSEG_CACHE="$(BIN)/../cache"

.DEFAULT_GOAL := help
.PHONY: help setup lab app demo test soak docs pictures readme clean
.NOTPARALLEL:

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

# The stamp holds what the environment was made from: the folder (an environment does not survive a move) and a checksum
# of these files. By content, since nbdev-export writes pyproject.toml anew each time.
MADE_FROM := constraints.txt settings.ini pyproject.toml setup.py
ifneq ($(shell cat "$(STAMP)" 2>/dev/null),$(CURDIR) $(shell cat $(MADE_FROM) | cksum))
.PHONY: $(STAMP)
endif

$(STAMP):
	@sh tools/setup.sh "$(VENV)" "$(PYTHON)"
	@{ pwd -P; cat $(MADE_FROM) | cksum; } > "$(STAMP)"

setup: $(STAMP)  ## make the environment (a second call does nothing)

lab: $(STAMP)  ## open JupyterLab on the live panel
	@$(IN) jointseg-lab $(if $(PORT),--port "$(PORT)") $(if $(DATA),--data "$(DATA)") $(if $(LABEL),--label "$(LABEL)")

app: $(STAMP)  ## the live panel alone, without a notebook
	@$(IN) jointseg-lab --app $(if $(PORT),--port "$(PORT)") $(if $(DATA),--data "$(DATA)") $(if $(LABEL),--label "$(LABEL)")

demo: $(STAMP)  ## train both agents on the embedded eyes, no browser, three minutes at most
	@$(IN) jointseg-train --recipe pocket --out "$(OUT)" --overwrite

test: $(STAMP)  ## check the export, run all notebooks, then pytest
	@sh tests/chromium.sh
	@$(IN) python tools/check_export.py
	@$(TESTENV) nbdev-test --n-workers 2
	@$(TESTENV) python -m pytest -q -n 2 --dist loadfile

soak: $(STAMP)  ## the slow cells and the slow tests
	@$(TESTENV) nbdev-test --n-workers 2 --flags slow
	@$(TESTENV) python -m pytest -q -m slow

docs: $(STAMP)  ## build the site from the notebooks into docs/, offline
	@$(IN) python tools/build_site.py

pictures: $(STAMP)  ## make the screenshots of README and site anew, in a real browser
	@$(IN) python tools/screenshots.py

readme: $(STAMP)  ## make README.md from nbs/index.ipynb
	@$(IN) python tools/readme.py

clean:  ## remove the environment and what was built; runs/ and docs/ stay
	rm -rf "$(VENV)" _proc build dist *.egg-info .pytest_cache .hypothesis
	find jointseg_nb tests tools nbs -name __pycache__ -prune -exec rm -rf {} +
