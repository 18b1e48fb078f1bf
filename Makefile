# Two targets are all a user needs: `make demo` and `make test`. Each sets up .venv when it is missing.
PYTHON ?= python3
VENV := .venv
OUT ?= runs/demo

# One line about what is left out on a machine without Node.
without_node = @command -v npm >/dev/null || echo "no Node: $(1); install Node 20 or newer (nodejs.org), then make ui"

.PHONY: demo test lint ui clean

demo: $(VENV)/installed
	$(VENV)/bin/sa-engine run demo --out $(OUT)
	$(call without_node,the annotation page is left out)

# Three workers for two cores, since tests wait a lot. Files in their order: those that take longest
# come first, or one worker would do the last alone.
test: $(VENV)/installed-dev
	$(VENV)/bin/python -m pytest -n 3 --no-loadscope-reorder
	$(call without_node,the annotation page and the tests of it in a browser are left out)

lint: $(VENV)/installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy -p model -p stages -p engine -p web

# The annotation page, into web/static; needs Node 20 and npm.
ui: web/ui/node_modules/installed
	cd web/ui && npm run --silent build

web/ui/node_modules/installed: web/ui/package.json web/ui/package-lock.json
	cd web/ui && npm ci --silent
	touch $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-dev: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --editable ".[dev]"
	touch $(VENV)/installed $@

clean:
	rm -rf $(VENV) runs
