# Everything a developer runs. `make` alone lists the targets.
#
#   make test ARGS="-k cosine -x"       options for pytest, ruff or a benchmark go into ARGS
#   make test WORKERS=8                 processes that run tests, by default one for each core
#   make venv PYTHON=python3.12         another Python
#   make venv TORCH="torch==2.13.0 --index-url URL"   another build of torch (CUDA, ROCm, CPU only)
#
# For another version of torch change its line in constraints.txt, too.

PYTHON ?= python3
TORCH  ?= torch==2.13.0
VENV   ?= .venv
DEMO   := demo/environment
DEMO_TORCH ?= $(TORCH) --extra-index-url https://download.pytorch.org/whl/cpu --retries 1
BIN    := $(VENV)/bin
ARGS   ?=
WORKERS ?= auto

export PIP_DISABLE_PIP_VERSION_CHECK := 1
READY   := $(VENV)/.ready
BENCHES := $(addprefix benchmarks/,data_speed.py schedule_query.py meta_step.py optim_step.py)
ON_CPU  := $(addprefix benchmarks/,collectives.py runner_overhead.py report_build.py start_up.py)

FAST    := tests/core tests/schedules tests/meta tests/optim tests/test_architecture.py tests/test_files.py \
           tests/test_house_rules.py --ignore=tests/optim/test_compiled.py

.DEFAULT_GOAL := help
.PHONY: help venv test test-fast test-slow lint format docs bench bench-gpu pages figures demo clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

venv: $(READY)  ## install everything into .venv; done again when pyproject.toml or constraints.txt change

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch comes first and by itself: its build is the machine's choice, and a range would fetch the newest.
$(READY): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

# A file's tests stay together (loadfile), so that what a file prepares is prepared once. tests/conftest.py names the slow
# files, and which of them are run one at a time because they start and kill processes. 5: ARGS chose none of them.
test: $(READY)  ## run the tests but for the slow ones, on WORKERS processes (ARGS="-k name -x")
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow" $(ARGS)

test-fast: $(READY)  ## run the tests of the library alone, in a minute
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow" $(FAST) $(ARGS)

test-slow: $(READY)  ## run the slow tests: kills, full disks, Ray, processes of torch.distributed, wheels
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "slow and not processes" $(ARGS) || [ $$? = 5 ]
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m processes $(ARGS) || [ $$? = 5 ]

lint: $(READY)  ## check style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(READY)  ## put the code into its format and mend what ruff can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(READY)  ## build the documentation into site/, strictly; ARGS=--without-outputs leaves the notebooks unrun
	OMP_NUM_THREADS=1 $(BIN)/python -m docs_site $(ARGS)

bench: $(READY)  ## run every benchmark
	@set -e; for file in $(BENCHES) $(ON_CPU); do echo "== $$file"; $(BIN)/python $$file $(ARGS); done

bench-gpu: $(READY)  ## run the tests marked gpu, the evidence of a GPU, then every benchmark on a CUDA device
	$(BIN)/python -m pytest -m gpu
	PYTHON=$(BIN)/python bash benchmarks/gpu_evidence.sh
	@set -e; for file in $(BENCHES); do echo "== $$file"; $(BIN)/python $$file --device cuda $(ARGS); done

pages: $(READY)  ## make the report pages of results/ from their records, into pages/
	@set -e; for file in $$(find results -name records.jsonl | sort); do folder=$$(dirname $$file); \
	  $(BIN)/metastep report $$folder -o pages/$${folder#results/}/report.html; done

# The demo has a small environment of its own inside its folder, with torch for the CPU where there is such a build;
# what is compiled on import goes there, too.
demo: $(DEMO)/.ready  ## the first five minutes: a small environment, three promises tried, one page; all in demo/
	PYTHONPYCACHEPREFIX=$(DEMO)/pycache OMP_NUM_THREADS=1 $(DEMO)/bin/python examples/demo.py $(ARGS)

$(DEMO)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DEMO)
	$(DEMO)/bin/pip install -qq --no-compile $(DEMO_TORCH)
	$(DEMO)/bin/pip install -qq --no-compile -c constraints.txt -e ".[demo]"
	@touch $@

figures: $(READY)  ## compute the figures in the documents from results/, and look for each in its page
	OMP_NUM_THREADS=1 $(BIN)/python -m docs_site.figures

clean:  ## remove the environment, the caches and what was built
	rm -rf $(VENV) build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks -type d -name __pycache__ -prune -exec rm -rf {} +
