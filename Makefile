# `make serve` runs the service, `make test` the tests. Each sets up what it needs.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
COUNT ?= 1000000
BIN := $(VENV)/bin
TORCH := $(shell sed -n 's/^ *"\(torch==[0-9.]*\)",$$/\1/p' pyproject.toml)
# Packages of their own, each tested in an environment of its own: their protobufs differ.
INTEGRATIONS := $(patsubst integrations/%/pyproject.toml,%,$(wildcard integrations/*/pyproject.toml))
# TensorRT for NVIDIA's cards, as nvidia-smi lists them; not beside a torch for CPUs.
EXTRA ?= $(if $(filter %/cpu,$(TORCH_INDEX)),serve,$(shell $(PYTHON) fada/machine.py))

.DEFAULT_GOAL := help
.PHONY: help serve test test-slow test-integrations fuzz check docs format dist clean

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 26
	@echo
	@echo '  PYTHON=python3.12       another interpreter (3.11 to 3.13)'
	@echo '  TORCH_INDEX=URL         another index for torch, like that of the CPU-only or CUDA wheels'
	@echo '  EXTRA=serve             nothing for a GPU; by default what nvidia-smi shows: serve,'
	@echo '                          tensorrt, or tensorrt-datacenter for A100, H100, B200'
	@echo '  ARGS="--port 9000"      passed on to `fada serve` or pytest'

serve: $(VENV)/.serve ## set up and run the service
	$(BIN)/fada serve $(ARGS)

# Their hundreds of processes need compiled files, whatever the environment wants.
test: $(VENV)/.dev ## run the tests
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 3 $(ARGS)

test-slow: $(VENV)/.dev ## run the tests that take minutes
	$(BIN)/python -m pytest -m slow $(ARGS)

test-integrations: $(VENV)/.dev $(INTEGRATIONS:%=$(VENV)-%/.installed) ## test each package of integrations/ against the service
	@for name in $(INTEGRATIONS); do \
	  echo "integrations/$$name"; \
	  (cd integrations/$$name && FADA_TEST_PYTHON=$(abspath $(BIN)/python) \
	    $(abspath $(VENV))-$$name/bin/python -m pytest $(ARGS)) || exit 1; \
	done

fuzz: $(VENV)/.dev ## decode COUNT damaged files, send COUNT/1000 requests to each operation
	$(BIN)/python -m tests.hostile.fuzz --count $(COUNT) $(ARGS)
	FADA_TEST_EXAMPLES=$$(($(COUNT) / 1000)) $(BIN)/python -m pytest tests/hostile/test_contract.py

check: $(VENV)/.dev ## lint, check types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy -p fada_client
	$(BIN)/lint-imports

docs: $(VENV)/.dev ## build the documentation's pages
	$(BIN)/zensical build --strict --clean

format: $(VENV)/.dev ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# In empty environments; only what the extra `serve` needs is borrowed from $(VENV).
dist: $(VENV)/.serve ## build the wheels into dist/, install each and use it
	PYTHON=$(PYTHON) BORROW=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') .ci/dist

# torch goes in first and pinned, so that TORCH_INDEX decides which build it is.
$(VENV)/.torch: Makefile pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else "Python 3.11, 3.12 or 3.13 is needed, this is %d.%d: make PYTHON=python3.12 ..." % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	touch $@

$(VENV)/.serve: $(VENV)/.torch pyproject.toml clients/python/pyproject.toml
	@$(if $(findstring tensorrt,$(EXTRA)),echo "TensorRT is under NVIDIA's own licence. Without it: make serve EXTRA=serve",true)
	$(BIN)/python -m pip install --quiet -e clients/python -e '.[$(EXTRA)]' || \
	  { echo 'Not installed. Without a GPU: make serve EXTRA=serve'; exit 1; }
	touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml clients/python/pyproject.toml
	$(BIN)/python -m pip install --quiet -e clients/python -e '.[dev]'
	touch $@ $(if $(filter serve,$(EXTRA)),$(VENV)/.serve)

$(VENV)-%/.installed: integrations/%/pyproject.toml clients/python/pyproject.toml
	$(PYTHON) -m venv $(VENV)-$*
	$(VENV)-$*/bin/python -m pip install --quiet -e clients/python -e 'integrations/$*[test]'
	touch $@

clean: ## remove the environments and the wheels
	rm -rf $(VENV) $(INTEGRATIONS:%=$(VENV)-%) dist
