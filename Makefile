# `make demo` answers a question with the built-in model; `make test` checks everything.
PYTHON ?= python3
VENV ?= .venv
DEMO_VENV ?= .venv-demo
WORKERS ?= 2
BENCH ?= .bench

.PHONY: demo test check format bench clean

# Only what running needs: no torch, no network beyond the package index.
demo: $(DEMO_VENV)/ready
	$(DEMO_VENV)/bin/edgevlm run examples/scene.png "How many objects are there?"

test: check
	$(VENV)/bin/pytest -n $(WORKERS)

check: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# Against llama.cpp and eager PyTorch: builds llama.cpp once, takes 15 GB in $(BENCH) and an hour of a quiet machine.
bench: $(VENV)/ready
	-$(VENV)/bin/python -m benchmarks.peers.setup
	$(VENV)/bin/python -m benchmarks.peers $(BENCH)

format: $(VENV)/ready
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf .venv .venv-demo build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(DEMO_VENV)/ready: pyproject.toml models.yaml
	$(PYTHON) -m venv --clear $(DEMO_VENV)
	$(DEMO_VENV)/bin/pip install --quiet .
	touch $@

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/pip install --quiet -c constraints.txt -e ".[export,openvino,npu,dev]"
	touch $@
