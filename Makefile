# amortlit: `make help` lists what there is.
VENV   ?= .venv
PYTHON ?= python3
PAPERS ?=
SCALE  ?= cpu
JOBS   ?= 2
NETS   ?=
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup run status test lab docs reproduce zoo lint export publish peers peers-gfn peers-ott hooks clean

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12
	@echo
	@echo 'make run                                   the starter papers at scale cpu'
	@echo 'make run PAPERS=all                        every paper that has a notebook'
	@echo 'make run PAPERS="transport.*" SCALE=gpu    a chapter, at the scale of a GPU'

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "amortlit needs Python 3.11 or newer; set PYTHON=python3.12, say")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,peers,docs,hub,cluster]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps torchcfm==1.0.7  # a peer whose dependencies would bring another torch
	@touch $@

setup: $(READY) ## make .venv with everything that the targets below need

run: $(READY) ## execute papers whose results are not up to date: PAPERS, SCALE, JOBS; stop it at any time, it goes on where it ended
	@set -f; $(BIN)/amortlit run $(PAPERS) --scale $(SCALE) --jobs $(JOBS)

status: $(READY) ## the scoreboard
	@$(BIN)/amortlit status

test: $(READY) ## every test, and every notebook at scale smoke (no download)
	$(BIN)/python -m pytest

lab: $(READY) ## JupyterLab on nbs/
	$(BIN)/jupyter lab --notebook-dir=nbs

docs: $(READY) ## the site in _site/, from what is published; nothing is executed
	$(BIN)/amortlit docs

reproduce: $(READY) ## the whole promise: execute every notebook at SCALE, publish, build the site; stop it at any time and call it again
	@set -f; $(BIN)/amortlit run $(or $(PAPERS),all) --scale $(SCALE) --jobs $(JOBS)
	@set -f; $(BIN)/amortlit publish $(or $(PAPERS),all) --scale $(SCALE)
	$(BIN)/amortlit docs

zoo: $(READY) ## train the shared networks that are missing in data/zoo (about two hours without a GPU): NETS="mnist-unet ..."
	$(BIN)/python -c 'from amortlit.core.zoo import make_zoo; make_zoo("$(NETS)".split())'

lint: $(READY) ## the shape of the pages, and ruff
	$(BIN)/amortlit lint
	$(BIN)/ruff check nbs tests

export: $(READY) ## notebooks to modules, cleaned
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean

publish: $(READY) ## put the last runs of PAPERS into their pages, and renew README
	@set -f; $(BIN)/amortlit publish $(PAPERS)

.venv-gfn/.ready:
	$(PYTHON) -m venv .venv-gfn
	.venv-gfn/bin/python -m pip install --quiet --disable-pip-version-check 'torch==2.13.0' 'torchgfn==2.4.1' 'numpy<2'
	@touch $@

.venv-ott/.ready:
	$(PYTHON) -m venv .venv-ott
	.venv-ott/bin/python -m pip install --quiet --disable-pip-version-check 'jax==0.10.2' 'jaxlib==0.10.2' 'ott-jax[neural]==0.6.0' 'flax==0.12.8' 'optax==0.2.8' 'diffrax==0.7.2'
	@touch $@

peers: peers-gfn peers-ott ## environments for two peers that do not go with the rest: torchgfn and OTT

peers-gfn: .venv-gfn/.ready
peers-ott: .venv-ott/.ready

hooks: $(READY) ## git hooks (clean, export, lint) and the merge driver for notebooks
	git config core.hooksPath .githooks
	git config merge.nbdev-merge.name 'resolve conflicts with nbdev_fix'
	git config merge.nbdev-merge.driver '$(BIN)/nbdev_merge %O %A %B %P'

clean: ## remove results of runs and the site (not what is published)
	rm -rf _runs _site _docs
