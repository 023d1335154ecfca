# make setup | demo | test | bench | check | docs. Settings: PYTHON=python3.12, MPI=mpich, TORCH_INDEX=URL, HOROVOD=0 (docs/install.md).
VENV := .venv
export PYTHON MPI TORCH_INDEX HOROVOD

.DEFAULT_GOAL := help
.PHONY: help setup demo test bench check docs format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## make .venv: pinned packages, MPI, Horovod; what is there already is kept
	@.ci/setup

demo: setup ## train sync and async-global on a small corpus, on even and uneven workers, and compare; DATA=multi30k: on Multi30k
	@$(VENV)/bin/hpcasync demo $(if $(DATA),--data $(DATA)) $(if $(MIRROR),--mirror $(MIRROR))

# tests/conftest.py says how many processes, and what each of them runs; one for those that ARGS chooses, which is there sooner.
test: setup ## run the tests; ARGS="-k windows" chooses some
	@$(VENV)/bin/python -m pytest --numprocesses $(if $(ARGS),0,auto) --durations=10 $(ARGS)

bench: setup ## measure the engine against this machine's limits and against other ways; BENCH="transport --json"
	@for what in $(if $(BENCH),"$(BENCH)",transport apply latency idle compare); do $(VENV)/bin/hpcasync bench $$what || exit 1; done

check: setup ## formatting, lint, types
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/mypy

docs: setup ## build the documentation as a site in site/ (open site/index.html); warnings are errors
	@$(VENV)/bin/mkdocs build --strict

format: setup ## format the code and mend what the linter can
	@$(VENV)/bin/ruff format .
	@$(VENV)/bin/ruff check --fix .

clean: ## remove the virtual environment and what tools left behind; .wheels/ is kept
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info build dist site
