# Settings and functions of the scripts table*.sh, see docs/evaluation.md.
#
#   launch/paper/tableN.sh [--dry-run] [--config.KEY=VALUE ...]
#
# --dry-run prints the commands. The overrides apply to every evaluation.
# Finished runs are shared by the tables and skipped; interrupted runs resume.
# Environment variables:
#
#   WORKDIR  default runs/paper; judgements are in WORKDIR/JUDGE/SUITE
#   DATA     default data: folder with the published files of each benchmark,
#            DATA/rewardbench, ppe, rmb, realmistake
#   MODELS   default runs/spct: WORKDIR of configs/spct.py:paper
#   INITIAL, RFT, GRM, META_RM, LLM, SCALAR, PAIR, CRITIC, VALUE
#            model directories, where they are not in MODELS; docs/evaluation.md
#            has the commands that train those of the other judges
#   K, K_BASELINE   samples of the GRM and of the other judges; default 32 and 8
#   CONFIG   default configs/evaluate.py
#   TRAIN    config of the training for Tables 4 and 15; default
#            configs/spct.py:paper
#   PYTHON   default .venv/bin/python
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

WORKDIR=${WORKDIR:-runs/paper}
DATA=${DATA:-data}
MODELS=${MODELS:-runs/spct}
INITIAL=${INITIAL:-checkpoints/gemma-2-27b-it}
RFT=${RFT:-$MODELS/rft/model}
GRM=${GRM:-$MODELS/grpo/model}
META_RM=${META_RM:-$MODELS/meta_rm/model}
LLM=${LLM:-runs/llm_grpo/model}
SCALAR=${SCALAR:-runs/bradley_terry/model}
PAIR=${PAIR:-runs/pair_rm/model}
CRITIC=${CRITIC:-runs/critic/model}
VALUE=${VALUE:-runs/value_model/model}
K=${K:-32}
K_BASELINE=${K_BASELINE:-8}
CONFIG=${CONFIG:-configs/evaluate.py}
TRAIN=${TRAIN:-configs/spct.py:paper}
PYTHON=${PYTHON:-.venv/bin/python}

dry_run=
if [[ ${1:-} == --dry-run ]]; then
  dry_run=1
  shift
fi
OVERRIDES=("$@")

# Prints a command, and runs it unless this is a dry run.
run() {
  printf '%s' "$1"
  printf ' %q' "${@:2}"
  printf '\n'
  if [[ -z $dry_run ]]; then
    "$@"
  fi
}

# Judges a suite: evaluate JUDGE SUITE [--config.KEY=VALUE ...]
evaluate() {
  local judge=$1 suite=$2 order=(--config.response_order=random)
  if [[ $judge == *scalar || $judge == pair ]]; then
    order=()  # they read one response, or both orders
  fi
  run "$PYTHON" -m grm_jax.main --config="$CONFIG" \
    --workdir="$WORKDIR/$judge/$suite" \
    --config.suites."$suite"="$DATA/$suite" ${order[@]+"${order[@]}"} \
    "${@:3}" ${OVERRIDES[@]+"${OVERRIDES[@]}"}
}

# Judges a suite with the GRM and with all other judges of Tables 2 and 3.
evaluate_all() {
  local suite=$1 baseline=()
  if [[ $suite == rmb ]]; then
    baseline=(--config.rmb.lists=pairs)  # appendix D.2
  fi
  evaluate grm "$suite" --config.checkpoint="$GRM" \
    --config.meta_checkpoint="$META_RM" --config.k="$K"
  evaluate rft "$suite" --config.checkpoint="$RFT" --config.k="$K_BASELINE"
  evaluate llm "$suite" ${baseline[@]+"${baseline[@]}"} \
    --config.judge=llm --config.checkpoint="$LLM" --config.k="$K_BASELINE"
  evaluate token_probability "$suite" ${baseline[@]+"${baseline[@]}"} \
    --config.judge=token_probability --config.checkpoint="$LLM" \
    --config.k="$K_BASELINE"
  evaluate semi_scalar "$suite" ${baseline[@]+"${baseline[@]}"} \
    --config.judge=semi_scalar --config.checkpoint="$CRITIC" \
    --config.value_checkpoint="$VALUE" --config.k="$K_BASELINE"
  evaluate scalar "$suite" ${baseline[@]+"${baseline[@]}"} \
    --config.judge=scalar --config.checkpoint="$SCALAR"
  evaluate pair "$suite" ${baseline[@]+"${baseline[@]}"} \
    --config.judge=pair --config.checkpoint="$PAIR"
}

# Prints a table of the paper next to the paper's numbers.
table() {
  run "$PYTHON" -m benchmarks.paper_table --table="$1" --workdir="$WORKDIR"
}

# Judges a suite with the initial model (Tables 1 and 14): without principles,
# with its own, and with those of its first correct judgement of each query. The
# principles are written before the judgement.
evaluate_principles() {
  local suite=$1 initial=(--config.checkpoint="$INITIAL" --config.k=0)
  evaluate no_principles "$suite" "${initial[@]}" \
    --config.prompt.template=no_principles
  evaluate self_generated "$suite" --config.checkpoint="$INITIAL" \
    --config.prompt.template=critique --config.k="$K_BASELINE"
  evaluate filtered "$suite" "${initial[@]}" \
    --config.prompt.template=critique \
    --config.principles="$WORKDIR/self_generated/$suite/$suite.samples.jsonl"
}
