# make run      try syncer: mounts demo/mnt over a directory, no server needed
# make test     run all tests but the torture tests; three at once, since they wait more than they work
# make check    formatting, lint, types, layers, generated documentation
# make bench    figures, as in docs/performance.md
# make bench-scale  how cost grows with the number of files
# make torture  the long tests
# make docs     write the generated parts of docs/
#
# PYTHON=python3.12 chooses another Python for the virtual environment (3.10 or later).

PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test check bench bench-scale torture docs clean

run: .venv/run
	@scripts/system-packages run $(PYTHON)
	@scripts/demo $(BIN)/python

test: .venv/dev
	@scripts/system-packages test $(PYTHON)
	$(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder --durations=20 -m "not torture"

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@awk 'FNR == 501 { print FILENAME ": longer than 500 lines"; bad = 1 } END { exit bad }' \
	    $$(find syncer -name '*.py')
	$(BIN)/python scripts/option_table.py --check docs/configuration.md
	$(BIN)/python scripts/command_page.py --check docs/commands.md

bench: .venv/dev
	@scripts/system-packages test $(PYTHON)
	$(BIN)/python -m tests.bench

bench-scale: .venv/dev
	@scripts/system-packages test $(PYTHON)
	$(BIN)/python -m tests.bench.scale
	$(BIN)/python -m tests.bench.growth

torture: .venv/dev
	@scripts/system-packages test $(PYTHON)
	$(BIN)/python -m pytest tests -m torture

docs: .venv/dev
	$(BIN)/python scripts/option_table.py docs/configuration.md
	$(BIN)/python scripts/command_page.py docs/commands.md

clean:
	rm -rf .venv build dist *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find syncer tests -name __pycache__ -prune -exec rm -rf {} +

# The stamps say for what the environment is complete.
.venv/run: setup.cfg setup.py | .venv/bin/python
	$(BIN)/python -m pip install --quiet --use-pep517 --editable .
	@touch $@

.venv/dev: setup.cfg setup.py | .venv/bin/python
	$(BIN)/python -m pip install --quiet --use-pep517 --editable '.[test,check]'
	@touch .venv/run $@

.venv/bin/python:
	@scripts/system-packages run $(PYTHON)
	$(PYTHON) -m venv .venv
