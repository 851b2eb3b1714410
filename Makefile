# Two commands do everything on a fresh machine: `make demo` and `make test`. Each sets itself up first, with what it needs:
# the demo the package, its figures and its server, the tests all that can be tested, `make docs` what builds the site.
#
# An active virtual environment is used as it is; else one is made in .venv. PyTorch is installed only where none is.
PYTHON ?= python3
VENV := $(if $(VIRTUAL_ENV),$(VIRTUAL_ENV),.venv)
RUN := $(VENV)/bin/python
READY := $(VENV)/.redraft-ready
WITH_FIGURES := $(VENV)/.redraft-figures
WITH_DOCS := $(VENV)/.redraft-docs
NEWEST := .venv-newest
TORCH := torch==2.13.0
JOBS ?= 2
comma := ,

CASES ?= ../shared/cases

.PHONY: demo test quick cases check format docs setup test-newest clean

demo: $(WITH_FIGURES)
	$(RUN) -m redraft demo --into demo

test: setup
	$(RUN) -m pytest -n $(JOBS) --dist loadfile

# The tests that take less than half a second each; tests/slow.py lists the others and why.
quick: setup
	$(RUN) -m pytest -n $(JOBS) --dist loadfile -m "not slow"

# Inputs from elsewhere that once failed, a script each: all must exit 0. Skipped where the folder is absent.
cases: setup
	@test -d $(CASES) || echo "no cases at $(CASES): skipped"; failed=0; \
	for script in $(CASES)/*/run.sh; do \
		test -e "$$script" || continue; echo "== $$script"; REDRAFT="$(abspath $(VENV))" "$$script" || failed=1; \
	done; exit $$failed

# What can be known without running the models: style, types (ours, and those that a user's script sees), doors.
check: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) -m mypy --config-file= --strict examples/typed.py
	$(RUN) -m pytest tests/test_imports.py

format: setup
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

# The site, in site/: without a network, and a broken link or anchor fails.
docs: $(WITH_DOCS)
	$(RUN) -m sphinx -W --keep-going -n -q -b html docs site

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(call install,.[dev])
	touch $(READY) $(WITH_FIGURES)

$(WITH_FIGURES): pyproject.toml constraints.txt
	$(call install,.[figures$(comma)serve])
	touch $@

$(WITH_DOCS): pyproject.toml constraints.txt
	$(call install,.[docs])
	touch $@

define install
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -c "import torch" 2>/dev/null || $(RUN) -m pip install $(TORCH)
	$(RUN) -m pip install -c constraints.txt -e "$(1)"
endef

# The suite against the newest release of every dependency (PyTorch apart): a moved dependency must not stop us.
test-newest:
	rm -rf $(NEWEST)
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install $(TORCH)
	$(NEWEST)/bin/python -m pip install -e ".[dev]"
	$(NEWEST)/bin/python -m pytest -n $(JOBS) --dist loadfile

clean:
	rm -rf .venv $(NEWEST) build dist site .pytest_cache .mypy_cache .ruff_cache
