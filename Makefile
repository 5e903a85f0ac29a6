# make demo    set up, then train with grpo and vpo_at_k:1, and compare them with the base policy (runs/demo/)
# make test    set up, then lint, type-check and test
# make test-slow   set up, then the long tests alone
# make test-host   the adapter's tests with an older release of the host
# make docs    the documentation as a site, in site/
# make sandbox     install bubblewrap, for reward specifications that run programs
# make browser     install Chromium, for the tests of the report in a browser
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.requirements.sha256
TORCH := $(shell sed -n 's/^torch==//p' requirements/cpu.txt)
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
# Two files of tests at a time, the longest first (tests/conftest.py), with one thread each.
PARALLEL := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --no-loadscope-reorder

HOST ?= 0.11.1

unexport PYTHONDONTWRITEBYTECODE

.PHONY: environment setup demo test test-slow test-host lint docs sandbox browser clean

# Compiled at the end, by all cores: where PYTHONDONTWRITEBYTECODE is set, imports would compile each time.
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-compile

environment:
	@sha256sum requirements/cpu.txt > .requirements.new; \
	if cmp -s .requirements.new $(STAMP); then rm .requirements.new; exit 0; fi; \
	set -e; \
	trap 'rm -f .requirements.new' EXIT; \
	echo "Setting up $(VENV) (a few minutes, about 4 GB) ..."; \
	rm -rf $(VENV); \
	$(PYTHON) -m venv $(VENV); \
	grep -v '^torch==' requirements/cpu.txt > $(VENV)/requirements.txt; \
	$(PIP) 'torch==$(TORCH)' 2>$(VENV)/torch.log \
	  || $(PIP) --index-url $(TORCH_CPU_INDEX) 'torch==$(TORCH)' \
	  || { cat $(VENV)/torch.log; exit 1; }; \
	$(PIP) -r $(VENV)/requirements.txt 2>$(VENV)/pip.log || { cat $(VENV)/pip.log; exit 1; }; \
	$(BIN)/python -m compileall -q -j 0 $(VENV)/lib > $(VENV)/compile.log || true; \
	mv .requirements.new $(STAMP)

setup: environment
	@test $(VENV)/project -nt pyproject.toml \
	  || { $(PIP) --no-build-isolation --editable . && touch $(VENV)/project; }

demo: setup  # to compile the layers takes longer than it saves for a policy this small
	TORCHDYNAMO_DISABLE=1 $(BIN)/vpo run pipeline

test: setup lint
	$(PARALLEL)

test-slow: setup
	$(PARALLEL) -m slow

test-host: setup  # HOST: another release of OpenRLHF, put before the installed one
	rm -rf $(VENV)/host
	$(PIP) --target $(VENV)/host openrlhf==$(HOST)
	PYTHONPATH=$(VENV)/host $(BIN)/python -m pytest \
	  tests/test_experience.py tests/test_launcher.py tests/test_cpu_runtime.py tests/test_train_ppo_ray.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup
	$(BIN)/mkdocs build --strict --site-dir site

sandbox:  # what scoring programs needs: bubblewrap, from Debian's packages, as root
	command -v bwrap > /dev/null || { apt-get update -qq && apt-get install -y -qq bubblewrap; }

browser:  # what the tests of the report in a browser need: Chromium, from Debian's packages, as root
	command -v chromium > /dev/null || { apt-get update -qq && apt-get install -y -qq chromium; }

clean:
	rm -rf $(VENV) runs site .requirements.new
