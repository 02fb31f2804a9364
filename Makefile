# How the product starts and how its tests start. Needs make and Python 3.11 or newer; the rest it installs into VENV.
#
#   make run     everything on one machine: http://127.0.0.1:18081, data in ./data. Ctrl-C ends it.
#                PORT=8080 HOST=… DATA_DIR=… DATABASE_URL=… BROKER_URL=… LOCAL_MODE=0 … are honoured.
#   make demo    the same with stand-in platforms and a week of faults, in a data directory of its own.
#   make test    lint, then all tests: what uses a database on SQLite, then everything on PostgreSQL.
#                DATABASE_URL and BROKER_URL choose existing servers; WORKERS=4 runs more at once.
#   make faults  every fault at every point, on both engines, and a table of verdicts: an hour and more.
#                SEED=7 draws other lots; FAULTS='-k pagerduty' tries a part of it.
#   make bench   measures it for two minutes, each figure beside a floor: docs/benchmarks.md.
#                ENGINE=sqlite measures SQLite; BENCH='--only page' a part of it.
#   make pictures  takes the pictures in docs/ from the demo's data. Needs Chromium.

VENV ?= .venv
WORKERS ?= 2
# Asked only when something is to be installed.
PYTHON ?= $(shell for p in python3.11 python3; do \
    $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN = $(VENV)/bin
PYTEST = $(BIN)/python -m pytest -n $(WORKERS)
# Two copies that start at once share the installation instead of writing over each other's.
LOCK = $(shell command -v flock >/dev/null && echo flock $(VENV)/install.lock)

.PHONY: run demo test lint faults bench pictures pins clean

run: export LOCAL_MODE ?= 1
run: $(VENV)/run.stamp
	@$(BIN)/python manage.py up --with-parent

demo: export LOCAL_MODE = 1
demo: export DATA_DIR ?= data-demo
demo: export EGRESS_ALLOWED_NETWORKS = 127.0.0.0/8
demo: $(VENV)/run.stamp
	@$(BIN)/python manage.py up --with-parent --demo

test: lint
	ENGINE=sqlite $(PYTEST) --database-only
	ENGINE=postgres $(PYTEST)

lint: $(VENV)/test.stamp
	$(BIN)/python -m ruff check .

faults: SEED ?= 1
faults: $(VENV)/test.stamp
	@failed=; for engine in sqlite postgres; do \
	    ENGINE=$$engine $(PYTEST) -m fault --faults all --seed $(SEED) $(FAULTS) || failed=1; \
	done; [ -z "$$failed" ]

bench: ENGINE ?= postgres
bench: $(VENV)/run.stamp $(VENV)/test.stamp
	$(BIN)/python -m tests.bench --engine $(ENGINE) $(BENCH)

pictures: $(VENV)/run.stamp $(VENV)/test.stamp
	$(BIN)/python -m tests.pictures

# Stamps, so that a later start looks at two dates and goes on.
$(VENV)/run.stamp: requirements.txt
$(VENV)/test.stamp: requirements.txt tests/requirements.txt
$(VENV)/%.stamp:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: PYTHON=/path/to/python3.11 make $*"; exit 1; }
	@mkdir -p $(VENV)
	@$(LOCK) sh -euc '\
	    new=; for file in $^; do [ $@ -nt $$file ] || new=1; done; [ "$$new" ] || exit 0; \
	    echo "Installing $^ into $(VENV)"; \
	    [ -x $(BIN)/pip ] || $(PYTHON) -m venv $(VENV); \
	    $(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes $(^:%=-r %); \
	    touch $@'

# Resolves requirements.in anew. Needs uv, which is no part of running or testing.
UV ?= uv
COMPILE = $(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
    --no-emit-find-links --custom-compile-command "make pins"
pins:
	$(COMPILE) requirements.in -o requirements.txt
	cd tests && $(COMPILE) requirements.in -o requirements.txt

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
