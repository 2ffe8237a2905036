# The workshop's commands. `make help` explains them.
# Once .venv is made, its Python is the one; before, and to change it: make setup PYTHON=python3.12
PYTHON ?= $(shell test -x .venv/bin/python && echo .venv/bin/python || echo python3)
EXTRA ?=
JOBS ?=
OPEN ?= yes
VENV := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup lab class test coverage lint slides doctor outputs site screenshots train cluster cluster-down clean

help:  ## say what each command does
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  Variables: PYTHON=python3.12 (which Python), EXTRA=gpu (for CUDA machines), OPEN=no (no browser)"

setup:  ## make .venv with everything the notebooks need (EXTRA=gpu on a CUDA machine)
	@$(PYTHON) requirements/install.py $(EXTRA)

lab: setup  ## start a vLLM server and JupyterLab at the first lesson; Ctrl-C ends both
	@$(VENV)/python -m helpers.lab --open $(OPEN)

class:  ## install once for a class, in a folder that all nodes see (FOLDER=/shared/workshop, EXTRA=gpu, GROUP=...)
	@$(PYTHON) -m helpers.class_install $(or $(FOLDER),$(error name the folder: make class FOLDER=/shared/workshop)) $(addprefix --extra ,$(EXTRA)) $(addprefix --group ,$(GROUP))

test:  ## set up what the tests need and run every check (TESTS="tests/unit tests/notebooks" for some, JOBS=2 for two at a time)
	@$(PYTHON) requirements/install.py $(EXTRA) site dev
	@$(VENV)/ruff check -q . && $(VENV)/ruff format -q --check .
	@$(VENV)/python -m pytest $(if $(JOBS),--numprocesses $(JOBS) --dist loadscope --no-loadscope-reorder) $(TESTS)

coverage:  ## run the unit tests, or TESTS, and say how much of helpers they run, the least covered modules first
	@$(PYTHON) requirements/install.py $(EXTRA) site dev
	@mkdir -p build/coverage && $(VENV)/coverage erase
	@$(VENV)/coverage run --parallel-mode -m pytest -q $(or $(TESTS),tests/unit)
	@$(VENV)/coverage combine -q && $(VENV)/coverage report

lint:  ## check style, types and spelling, and mend what can be mended
	@$(PYTHON) requirements/install.py $(EXTRA) dev
	@$(VENV)/ruff check --fix . && $(VENV)/ruff format . && $(VENV)/codespell && $(VENV)/mypy

slides: setup  ## build the slides and the cheat sheet into build/slides: HTML that needs no network, and PDF
	@slides/setup.sh && $(VENV)/python -m helpers.slides

doctor:  ## say what this machine lacks and, where Slurm is, how your newest deployment is doing
	@$(PYTHON) -m helpers.environment
	@! command -v squeue >/dev/null || $(PYTHON) -m helpers.slurm doctor

outputs: setup  ## run the notebooks and keep their outputs (NOTEBOOKS=notebooks/03... for some of them)
	@$(VENV)/python -m helpers.outputs $(NOTEBOOKS)

site:  ## make all lessons and labs a static site that needs no network: build/site
	@$(PYTHON) requirements/install.py $(EXTRA) site
	@rm -rf build/site
	@$(VENV)/python -m sphinx -q -W --keep-going -E -c docs/site -d build/site-work . build/site
	@echo "The site: build/site/index.html"

screenshots:  ## look at the lessons in a browser, keep the README's pictures (as root: it starts the Slurm cluster)
	@$(PYTHON) requirements/install.py $(EXTRA) site dev
	@$(VENV)/python -m pytest -q tests/browser/test_lessons.py tests/slurm/test_ondemand_page.py
	@$(VENV)/python docs/pictures.py

train: setup  ## train the small Llama anew (minutes on a GPU, many hours on a CPU)
	@$(VENV)/python -m helpers.tiny.train

cluster:  ## start a Slurm cluster of 2 nodes with pretend GPUs on this machine, as root (NODES=4 for more)
	@slurm/testbed/cluster.sh up $(or $(NODES),2)

cluster-down:  ## stop that cluster and remove all it made
	@slurm/testbed/cluster.sh down

clean:  ## remove what setup and the tests made
	@rm -rf .venv build slides/node_modules .pytest_cache .ruff_cache .hypothesis *.egg-info requirements/vllm-metadata/*.egg-info requirements/vllm-metadata/build
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
