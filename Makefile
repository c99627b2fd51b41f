# make demo   upscale the bundled photograph (sets up .venv first)
# make test   all tests            make quick  the tests of the mathematics
# make lint   ruff and mypy
# make docs   the site, in site/   make bench  the tables and plots of docs/ (two hours and a half)
# make mutants   edits of the core that the tests notice (an hour)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

unexport PYTHONDONTWRITEBYTECODE  # tests start processes; bytecode that is written once saves each of them a second

.PHONY: demo test quick mutants lint docs bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/.images
	$(BIN)/python benchmarks/demo.py demo

test quick: PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --durations=20

test: $(VENV)/.test
	$(PYTEST)

# The mathematics: all but what takes long (orders of paths and of ODEs, half precision, fuzzing) and what needs diffusers.
CORE := schedule shift process prediction expansion step method grid noise plan plans solve recipe details errors structure \
	orders parity reductions flow cold objective
quick: $(VENV)/.test
	$(PYTEST) -k "not strong and not path_of_the_sde and not half_precision and not scheduler and not ode_method and not fuzz" $(wildcard $(CORE:%=tests/test_%.py)) dosde --ignore=dosde/interop

mutants: $(VENV)/.dev
	$(BIN)/python benchmarks/mutants.py  # an hour

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build  # not --quiet, which would hide the warnings from its strict mode

bench: $(VENV)/.dev
	$(PIP) -e ".[train]"
	$(BIN)/python benchmarks/convergence.py
	$(BIN)/python benchmarks/laws.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/agreement.py
	$(BIN)/python benchmarks/few_step.py
	$(BIN)/python benchmarks/few_step.py --process resshift
	$(PIP) --no-deps azula einops
	$(BIN)/python benchmarks/posterior.py
	$(BIN)/python benchmarks/stability.py
	$(BIN)/python benchmarks/ablation.py
	$(BIN)/python benchmarks/tune.py
	$(BIN)/python benchmarks/pipeline.py --dtype float32,bfloat16 --repeats 3  # full size: half an hour, 13 GB
	$(BIN)/python benchmarks/pipeline_memory.py
	$(BIN)/python benchmarks/contact_sheet.py
	$(BIN)/python benchmarks/shipped.py
	$(BIN)/python benchmarks/paper_tables.py --train  # an hour
	$(BIN)/python benchmarks/paper_tables.py

# One stamp an extra: set up once, and again when what is installed changes.
$(VENV)/.%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e ".[$*]"
	touch $@

clean:
	rm -rf $(VENV) demo site build *.egg-info
