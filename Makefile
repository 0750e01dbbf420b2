# Everything a user needs: `make demo` and `make test`. Both create .venv on first use.
#
# TORCH says which torch to install. The default is the version that was tested; where pip offers
# a choice of builds, name the one for your GPU here, with pip's own options:
#   make demo TORCH="torch==2.13.0 --index-url INDEX_OF_YOUR_BUILD"

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN = $(VENV)/bin
DEMO = demo-output

.PHONY: demo test test-slow lint bench clean

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet -e ".[test]"
	touch $@

demo: $(VENV)/installed
	mkdir -p $(DEMO)
	$(BIN)/mdbackmap convert tutorials/data/ubiquitin.xtc -o $(DEMO)/ubiquitin_aa.xtc
	$(BIN)/mdbackmap validate $(DEMO)/ubiquitin_aa.xtc -s $(DEMO)/ubiquitin_aa.pdb \
		--cg tutorials/data/ubiquitin.xtc --html $(DEMO)/report.html

test: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/pytest -m "not slow"

test-slow: $(VENV)/installed
	$(BIN)/pytest -m slow

lint: $(VENV)/installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

bench: $(VENV)/installed
	$(BIN)/python -m benchmarks.memory

clean:
	rm -rf $(VENV) $(DEMO) build dist
