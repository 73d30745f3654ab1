# make demo   set everything up and generate a video with the built-in tiny model on a mock 2x4 mesh
# make test   set everything up and run the tests
# make lint   style and types
# make baselines  take the present counts of both systems as those that the tests hold later ones against
# make docs-tables  make the tables in the documents anew (ONLY=PATTERN for some; LIST=1 says what each costs)
# make mutants  try deliberate errors against the tests that own them (ONLY=TEXT for some, JOBS=2 for two at a time)
# make setup  only the set-up: .venv with mochi-tt in it

PYTHON ?= python3
BIN := .venv/bin
UV := $(or $(shell uv --version >/dev/null 2>&1 && command -v uv),$(CURDIR)/.uv/bin/uv)
PROMPT ?= a red ball rolls to the left

.PHONY: setup demo test test-full lint baselines docs-tables mutants clean
.DELETE_ON_ERROR:

setup: $(BIN)/.ready

$(BIN)/.ready: pyproject.toml | $(UV)
	test -x $(BIN)/python || $(UV) venv --quiet --python 3.12 .venv
	$(UV) pip install --quiet --compile-bytecode --python $(BIN)/python -e '.[dev]'
	$(BIN)/python -m compileall -q models weight_cache scripts mochi_tt tests
	@touch $@

$(CURDIR)/.uv/bin/uv:
	@$(PYTHON) -m venv .uv >/dev/null 2>&1 && .uv/bin/python -m pip install --quiet uv \
	  || { rm -rf .uv; $(PYTHON) -m pip install --quiet --target .uv uv; } \
	  || { rm -rf .uv; echo "setup needs uv, and could not install it with $(PYTHON): install uv or python3-venv" >&2; exit 1; }

demo: setup
	$(BIN)/mochi-tt generate "$(PROMPT)"

test: setup
	$(BIN)/pytest -n 2

test-full: setup
	$(BIN)/pytest -n 2 -m ""

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

baselines: setup
	for system in quietbox galaxy; do \
	  $(BIN)/mochi-tt measure --mode projection --system $$system \
	    --baseline tests/performance/baselines/$$system.json || exit; \
	done

docs-tables: setup
	$(BIN)/python -m scripts.docs_tables $(if $(ONLY),--only '$(ONLY)') $(if $(LIST),--list)

mutants: setup
	$(BIN)/python -m tests.mutants --jobs $(or $(JOBS),1) $(if $(ONLY),--only '$(ONLY)')

clean:
	rm -rf .venv .uv
