# Everything is kept in .build/. Arguments for the program that a target runs: DEMO_ARGS, PYTEST_ARGS, ...

BIN := .build/venv/bin

# Test processes at a time: two a core, as they wait for a QEMU or a service some of the time, and with more the guests
# run late; and one with unit tests, which takes what they leave of the processor. Each may take 1 GiB.
WORKERS ?= $(shell awk -v most=$$(( $$(nproc) * 2 + 1 )) '/MemAvailable/ {n = int($$2 / 1048576); print n < 2 ? 2 : n < most ? n : most}' /proc/meminfo)
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

TOGETHER := $(MAKE) --no-print-directory --jobs 3 --output-sync=target

# Compiled files are kept: without them each process compiles all tests, and all of the program, again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test test-all lint types rules layers generated site collected tested docs wheel picture page-pictures bench-page bench bench-policies bench-forecasts bench-evacuation bench-scale soak lock audit install uninstall deb clean

help:
	@echo 'make demo      guests move between three hosts made on this machine, before your eyes   [DEMO_ARGS=--libvirt]'
	@echo 'make setup     only what the demo needs: Debian packages, .build/venv'
	@echo 'make test      lint, types, layers, and the tests on real QEMU   [PYTEST_ARGS=, WORKERS=]'
	@echo 'make test-all  further combinations of QEMU versions and faults too'
	@echo 'make lint      ruff, mypy, import-linter'
	@echo 'make docs      the documents and dashboards that are generated from the code'
	@echo 'make picture   the runs in docs/images anew, from migrations on this machine   [PICTURE_ARGS=never]'
	@echo 'make page-pictures   docs/images/page-*.png anew, of the page with a simulated site'
	@echo 'make bench-page   how quick the page is with 20,000 guests, in Chromium   [BENCH_ARGS=--hosts 1000 --guests 20000]'
	@echo 'make bench     the measurements in docs/benchmarks.md   [BENCH_ARGS=]'
	@echo 'make bench-policies   the controller beside what others do, in simulation   [BENCH_ARGS=--short|--real]'
	@echo 'make bench-forecasts   what was forecast, held against what came, in simulation   [BENCH_ARGS=--short|--real]'
	@echo 'make bench-evacuation   emptying a host: bound, plan and peers, in simulation   [BENCH_ARGS=--real]'
	@echo 'make bench-scale   10 to 2,000 migrations on one controller, what each costs, the journal; half an hour   [BENCH_ARGS=]'
	@echo 'make soak      the tests that run for long   [PYTEST_ARGS=]'
	@echo 'make lock      requirements*.lock anew after a change in pyproject.toml   [LOCK_ARGS=--upgrade]'
	@echo 'make audit     what is known to be wrong with the locked versions; takes a way to the OSV database'
	@echo 'make install   the service on this machine, under /opt/migrator; starts nothing   [PREFIX=, DESTDIR=, TRACES=1, LIBVIRT=1]'
	@echo 'make site      the documents as pages for a browser, in .build/site'
	@echo 'make wheel     what pipx installs, in .build/wheel'
	@echo 'make deb       a Debian package of it, in .build/deb, looked at by lintian'
	@echo 'make uninstall removes it; configuration and journal stay'
	@echo 'make clean     removes .build and caches'

setup:
	@scripts/setup $(if $(filter --libvirt,$(DEMO_ARGS)),demo-libvirt,demo)

demo: setup
	$(BIN)/migrator demo $(DEMO_ARGS)

# mypy takes what the first tests leave of the processor, beside them: it says what it finds as soon as it has found it, and
# all of it ends with a failure then.
test:
	@scripts/setup test
	@$(TOGETHER) rules layers generated collected
	@$(MAKE) --no-print-directory --jobs 2 types tested GENTLY='nice -n 19'

# The tests run a make of their own, which this one is no part of.
tested: export MAKEFLAGS :=
tested:
	$(PYTEST) $(PYTEST_ARGS)

test-all: lint deb
	@scripts/setup test
	$(PYTEST) -p tests.matrix -m 'not soak' $(PYTEST_ARGS)

lint:
	@scripts/setup lint
	@$(TOGETHER) types rules layers generated

types:
	$(GENTLY) $(BIN)/mypy

rules:
	$(BIN)/ruff check
	$(BIN)/ruff format --check

layers:
	$(BIN)/lint-imports --no-logo --cache-dir .build/import-linter

generated:
	$(BIN)/python scripts/docs --check
	$(BIN)/python -m dashboards.build --check
	$(BIN)/hadolint Containerfile
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build >.build/site.log 2>&1 || { cat .build/site.log; exit 1; }

# Each test process reads all tests: what they compile is compiled once before.
collected:
	@$(BIN)/python -m pytest --collect-only -qq $(PYTEST_ARGS) >/dev/null 2>&1 || true

docs:
	@scripts/setup lint
	$(BIN)/python scripts/docs
	$(BIN)/python -m dashboards.build

site:
	@scripts/setup lint
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build >.build/site.log 2>&1 || { cat .build/site.log; exit 1; }
	@echo 'made .build/site/index.html'

# With what builds an installation, in the versions of its lock; nothing else is loaded for it.
wheel:
	@scripts/setup demo
	@rm -rf .build/wheel
	@$(BIN)/python -m pip wheel --disable-pip-version-check --quiet --no-deps --no-build-isolation --wheel-dir .build/wheel .
	@echo "made $$(ls .build/wheel/*.whl)"

picture:
	@scripts/setup demo
	$(BIN)/python scripts/picture $(PICTURE_ARGS)

page-pictures:
	@scripts/setup test
	$(BIN)/python -m bench.page_pictures

bench-page:
	@scripts/setup bench
	$(BIN)/python -m bench.page $(BENCH_ARGS)

bench:
	@scripts/setup bench
	$(BIN)/python -m bench $(BENCH_ARGS)

bench-policies:
	@scripts/setup bench
	$(BIN)/python -m bench.policies $(BENCH_ARGS)

bench-forecasts:
	@scripts/setup bench
	$(BIN)/python -m bench.forecasts $(BENCH_ARGS)

bench-evacuation:
	@scripts/setup bench
	$(BIN)/python -m bench.evacuation $(BENCH_ARGS)

bench-scale:
	@scripts/setup bench
	$(BIN)/python -m bench.scale $(BENCH_ARGS)

soak:
	@scripts/setup test
	$(PYTEST) -m soak --timeout 0 -o faulthandler_timeout=0 $(PYTEST_ARGS)

lock:
	@scripts/lock $(LOCK_ARGS)

audit:
	@scripts/audit

deb:
	@scripts/setup deb
	@scripts/deb

install:
	@scripts/install

uninstall:
	@scripts/install uninstall

clean:
	rm -rf .build .hypothesis .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
