# Every command of the project. Each makes .venv when it is missing and installs again only when pyproject.toml changed.
#
#   make demo     train two digit classifiers; writes demo/timeline.png and demo/trace.json
#   make test     run the tests
#   make lint     run the linters, the type checker and the checks of the documents
#   make format   rewrite the Python files in the project's format
#   make bench    time vardag beside the libraries that are installed; writes build/compare.json and .png
#   make operators  print the operators: gradients, deviations from MXNet and from NumPy
#   make stress   run the long random tests, a quarter of an hour; prints what it counted
#   make checked  run the tests under the checks of what users' functions touch (VARDAG_CHECK=1)
#   make simulated  run the tests on a simulated device, then some over fifty seeds of its order; half an hour
#   make clean    remove what the other commands made
#
# The first of these that is Python 3.11 or newer makes .venv. Choose one yourself with: make PYTHON=/path/to/python demo
PYTHONS := $(if $(PYTHON),$(PYTHON),python3 python3.14 python3.13 python3.12 python3.11 python)

VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check --root-user-action=ignore

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test lint format bench operators stress checked simulated clean

help:
	@sed -n 's/^#   make/  make/p' Makefile

demo: $(VENV)/.installed-examples
	$(RUN) examples/train_digits.py --out demo

test: $(VENV)/.installed-test
	$(RUN) -m pytest

# mypy sees the checkout under the name of its package, whatever the directory is called: a link in .venv.
lint: $(VENV)/.installed-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	@mkdir -p $(VENV)/typing && ln -sfn ../.. $(VENV)/typing/vardag
	$(RUN) -m mypy
	$(RUN) -m pytest -q tests/test_docs.py

format: $(VENV)/.installed-dev
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

# Options go into BENCH, as in: make bench BENCH="--quick --python torch=/path/to/python"
bench: $(VENV)/.installed-test
	$(RUN) benchmarks/compare.py $(BENCH)

# Times beside MXNet's: make operators OPERATORS="--mxnet /path/to/python"
operators: $(VENV)/.installed-test
	$(RUN) benchmarks/operators.py $(OPERATORS)

# Seconds for each storm of finalizers and of exceptions thrown into workers; any number above 0 asks for the long forms
# of the rest.  Below 15 minutes on two cores with nothing beside it; the table of what was counted comes last
# (tests/engine/conftest.py).
STORM := 5
LONG_TESTS := tests/autograd/test_random_programs.py tests/autograd/test_torch_programs.py tests/ndarray/test_memory.py tests/ndarray/test_files_hostile.py \
	tests/ndarray/test_random_indexing.py tests/engine

stress: $(VENV)/.installed-test
	VARDAG_STRESS=$(STORM) $(RUN) -m pytest -q -m "stress or not stress" --timeout=900 -o faulthandler_timeout=900 $(LONG_TESTS)

# Every function that a test pushes runs on copies of what it declared: a false alarm fails its test.
checked: $(VENV)/.installed-test
	VARDAG_CHECK=1 $(RUN) -m pytest -q

# Arrays are on a device with streams unless a test says otherwise; what is of the host by its nature is skipped, saying why.
ELSEWHERE := VARDAG_DEFAULT_CONTEXT='simulated(0)'
SEEDS := 50
SEEDED_TESTS := tests/ndarray/test_device.py tests/ndarray/test_waiting.py tests/autograd/test_random_programs.py \
	tests/operators/test_together.py tests/test_io.py

simulated: $(VENV)/.installed-test
	$(ELSEWHERE) $(RUN) -m pytest -q
	for seed in $$(seq $(SEEDS)); do \
	  $(ELSEWHERE) VARDAG_SIMULATED_SEED=$$seed $(RUN) -m pytest -q $(SEEDED_TESTS) || exit 1; done

clean:
	rm -rf $(VENV) demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is newer than pyproject.toml when that extra is installed as pyproject.toml says.
$(VENV)/.installed-examples: EXTRAS := examples
$(VENV)/.installed-test: EXTRAS := test,examples
$(VENV)/.installed-dev: EXTRAS := dev
$(VENV)/.installed-%: pyproject.toml $(VENV)/.made
	@echo "installing vardag[$(EXTRAS)] into $(VENV)"
	$(PIP) --editable '.[$(EXTRAS)]'
	@touch $@

$(VENV)/.made:
	@for python in $(PYTHONS); do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "making $(VENV) with $$python"; "$$python" -m venv $(VENV) && touch $@; exit $$?; \
	  fi; \
	done; \
	echo "vardag needs Python 3.11 or newer; tried: $(PYTHONS)." >&2; \
	echo "Install one, or name it: make PYTHON=/path/to/python" >&2; \
	exit 1
