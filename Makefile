# Two commands do everything on a fresh machine: `make demo` and `make test`. Each sets itself up first.
#
# An active virtual environment is used as it is; else one is made in .venv. PyTorch is installed only where none is.
PYTHON ?= python3
VENV := $(if $(VIRTUAL_ENV),$(VIRTUAL_ENV),.venv)
RUN := $(VENV)/bin/python
READY := $(VENV)/.redraft-ready
NEWEST := .venv-newest
TORCH := torch==2.13.0
JOBS ?= 2

CASES ?= ../shared/cases

.PHONY: demo test quick cases check format setup test-newest clean

demo: setup
	$(RUN) -m redraft demo --into demo

test: setup
	$(RUN) -m pytest -n $(JOBS) --dist loadfile

# The tests that take less than five seconds each; tests/slow.py lists the others and why.
quick: setup
	$(RUN) -m pytest -n $(JOBS) --dist loadfile -m "not slow"

# Inputs from elsewhere that once failed, a script each: all must exit 0. Skipped where the folder is absent.
cases: setup
	@test -d $(CASES) || echo "no cases at $(CASES): skipped"; failed=0; \
	for script in $(CASES)/*/run.sh; do \
		test -e "$$script" || continue; echo "== $$script"; REDRAFT="$(abspath $(VENV))" "$$script" || failed=1; \
	done; exit $$failed

# What can be known without running the models: style, types, doors.
check: setup
	$(RUN) -m ruff check src tests benchmarks
	$(RUN) -m ruff format --check src tests benchmarks
	$(RUN) -m mypy
	$(RUN) -m pytest tests/test_imports.py

format: setup
	$(RUN) -m ruff check --fix src tests benchmarks
	$(RUN) -m ruff format src tests benchmarks

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -c "import torch" 2>/dev/null || $(RUN) -m pip install $(TORCH)
	$(RUN) -m pip install -c constraints.txt -e ".[hf,dev]"
	touch $(READY)

# The suite against the newest release of every dependency (PyTorch apart): a moved dependency must not stop us.
test-newest:
	rm -rf $(NEWEST)
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install $(TORCH)
	$(NEWEST)/bin/python -m pip install -e ".[hf,dev]"
	$(NEWEST)/bin/python -m pytest -n $(JOBS) --dist loadfile

clean:
	rm -rf .venv $(NEWEST) build dist .pytest_cache .mypy_cache .ruff_cache
