# agentd: every command that a person needs. `make` alone lists them.

PYTHON ?= python3
BIN := .venv/bin
TEST_WORKERS ?= 2
SYSTEM_DEPS := netcat-openbsd python3-venv

.DEFAULT_GOAL := help
.PHONY: help demo test check chaos bench lock system-deps clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/.installed: pyproject.toml requirements-dev.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "agentd needs Python 3.11 or newer; try: make PYTHON=python3.12"; rm -rf .venv; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

demo: .venv/.installed ## start a real fleet, break it five ways, and show what held (DEMO_INPUT=file)
	@$(BIN)/python -m chaos.demo $(if $(DEMO_INPUT),--input "$(DEMO_INPUT)")

test: .venv/.installed ## run the tests (real processes, a real nats-server; as root or not)
	$(BIN)/python -m pytest -q -n $(TEST_WORKERS) --dist loadfile $(TESTS)

check: .venv/.installed ## format, lint, types, import contract
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

chaos: .venv/.installed ## run every scenario of chaos/ and print promised against measured
	@$(BIN)/python -m chaos.run $(SCENARIOS)

bench: .venv/.installed ## measure against the references, one JSON line each (BENCH=supervision[.restart] COUNT=200)
	@$(BIN)/python -m tests.bench $(BENCH) $(if $(COUNT),--count $(COUNT))

lock: .venv/.installed ## resolve the dependencies anew into requirements*.txt, with hashes
	$(BIN)/python -m pip install --quiet pip-tools
	$(BIN)/pip-compile --quiet --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --strip-extras --allow-unsafe \
	  --upgrade -o requirements.txt pyproject.toml
	$(BIN)/pip-compile --quiet --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --strip-extras --allow-unsafe \
	  --upgrade --extra dev -c requirements.txt -o requirements-dev.txt pyproject.toml

system-deps: ## install the Debian packages that some tests use (needs root)
	apt-get install --yes --no-install-recommends $(SYSTEM_DEPS)

clean: ## remove what make built
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
