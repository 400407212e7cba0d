# Two commands from a fresh clone, with nothing but Python >= 3.11 and make:
#     make run      an experiment, results below data/runs
#     make test     every test

PYTHON ?= python3
VENV   ?= .venv
NB     ?= stitching
ARGS   ?= $(if $(filter stitching,$(NB)),-p layer bn3)

BIN  := $(VENV)/bin
DONE := $(VENV)/.done
RUNS := $(or $(REPTRANS_DATA),data)/runs
STRIP := --keep-output --keep-count --keep-id \
         --extra-keys "metadata.papermill cell.metadata.papermill metadata.language_info.version"

# More threads than free cores make small networks slower by a large factor.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help env run test portable book outputs networks full readme diagrams lint constraints format bench clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo 'Variables: NB=stitching  ARGS="-p layer bn5 -p seeds 2"  PYTHON=python3.12  VENV=.venv  REPTRANS_DATA=data'
	@echo '           CONSTRAINTS=constraints.txt, for the versions that gave the stored outputs'

env: $(DONE)  ## the virtual environment with everything installed

$(DONE): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'Python 3.11 or newer is needed; name one with PYTHON=, as in: make run PYTHON=python3.12' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
	@touch $(DONE)

run: $(DONE)  ## one notebook with the given parameters: NB= and ARGS=
	@mkdir -p "$(RUNS)"
	$(BIN)/papermill notebooks/$(NB).ipynb "$(RUNS)/$(NB).ipynb" $(ARGS)
	@echo
	@echo "The executed notebook: $(RUNS)/$(NB).ipynb"
	@echo "Its rows, arrays, figures and report: the newest folder in $(RUNS)"
	@ls -1td "$(RUNS)"/*/ 2>/dev/null | head -n 1

test: $(DONE)  ## unit tests, notebooks against their stored outputs, strict build of the book
	$(BIN)/python -m pytest

portable: $(DONE)  ## whether the notebooks print the same under the arithmetic of other processors
	$(BIN)/python tests/portable.py

book: $(DONE)  ## the site, in _build/html, and its part in Spanish
	$(BIN)/jupyter-book build . --toc book/_toc.yml -W -n --keep-going
	$(BIN)/python book/spanish.py

# On the CPU and from nothing, as the tests compare it; a notebook is replaced only after it ran to its end.
outputs: $(DONE)  ## run every notebook with its defaults and store its outputs
	@rm -rf _build/outputs
	@mkdir -p _build/outputs
	@set -e; for nb in notebooks/*.ipynb; do \
	  new="_build/outputs/$${nb##*/}"; \
	  CUDA_VISIBLE_DEVICES= REPTRANS_DATA=_build/outputs/data $(BIN)/papermill "$$nb" "$$new"; \
	  $(BIN)/nbstripout $(STRIP) "$$new"; \
	  mv "$$new" "$$nb"; \
	done

networks: $(DONE)  ## train the networks that are shipped again
	$(BIN)/python tests/default_networks.py

full: $(DONE)  ## the runs beside the notebooks: RUN=l2t_ww_cifar10 BUDGET=25m, or all at full scale (a GPU, days)
	@$(BIN)/python book/full.py $(if $(BUDGET),--budget $(BUDGET)) $(RUN)

readme: $(DONE)  ## fill the README's table of parameters, and the page on the architecture
	$(BIN)/python tests/readme_table.py
	$(BIN)/python tests/floors.py

diagrams: $(DONE)  ## draw the diagrams of the notebooks again
	$(BIN)/python book/diagrams.py

lint: $(DONE)  ## check style, and the types that users see; change nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

constraints: $(DONE)  ## write constraints.txt: the versions that are installed here
	$(BIN)/python tests/constraints.py

format: $(DONE)  ## mend style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(DONE)  ## time the costly parts; not part of the tests
	$(BIN)/python -m pytest tests/benchmarks -s --numprocesses=0

clean:  ## remove what can be made again, except the environment and data
	rm -rf _build .pytest_cache .ruff_cache
