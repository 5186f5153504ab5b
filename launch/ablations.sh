#!/usr/bin/env bash
# Runs the ablations of the paper's table (arXiv 2504.02495) with several seeds.
#
#   launch/ablations.sh [--dry-run] [--config.KEY=VALUE ...]
#
# --dry-run prints the commands. The overrides apply to every run. Environment
# variables:
#
#   SEEDS    values of config.seed; default "0 1 2"
#   WORKDIR  default runs/ablations; runs are in WORKDIR/NAME/SEED
#   CONFIG   default configs/spct.py:tiny
#   PYTHON   default .venv/bin/python
#
# Finished runs are skipped and interrupted runs resume. Stages that a run shares
# with the full run of its seed are copied from there. At the end,
# benchmarks/ablations.py prints the table.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

SEEDS=${SEEDS:-0 1 2}
WORKDIR=${WORKDIR:-runs/ablations}
CONFIG=${CONFIG:-configs/spct.py:tiny}
PYTHON=${PYTHON:-.venv/bin/python}

# Name | stages | override of the ablation | stages copied from the full run.
# "RFT only" is the full run after its stage rft. The table needs no votes, so
# all runs except the full one take one sample besides the greedy judgement.
SINGLE_SAMPLE=(--config.evaluation.k=1 --config.evaluation.k_intermediate=1)
RUNS='
full                  | base,sft,rft,grpo,meta_rm,evaluate |                                          |
no_rejective_sampling | base,sft,grpo,evaluate             |                                          | base sft
no_hinted             | base,sft,rft,evaluate              | --config.rft.num_hinted_samples=0                | base sft
no_unhinted           | base,sft,rft,evaluate              | --config.rft.hint=all --config.rft.filter.unhinted=False | base sft
no_general_data       | base,sft,rft,evaluate              | --config.rft.train.data.general_fraction=0.0 | base sft
no_principles         | base,sft,rft,grpo,evaluate         | --config.principles=False                |
'

dry_run=
if [[ ${1:-} == --dry-run ]]; then
  dry_run=1
  shift
fi

# Prints a command, and runs it unless this is a dry run.
run() {
  printf '%s' "$1"
  printf ' %q' "${@:2}"
  printf '\n'
  if [[ -z $dry_run ]]; then
    "$@"
  fi
}

# Copies finished stages from the full run: copy_stages FROM TO STAGE...
copy_stages() {
  local from=$1 to=$2 stage
  shift 2
  for stage in "$@"; do
    if [[ -n $dry_run || (-e $from/$stage/finished.json && ! -e $to/$stage) ]]
    then
      run mkdir -p "$to"
      # The final rename is atomic, so an interrupted copy is not taken for a
      # finished stage.
      run rm -rf "$to/$stage.copy"
      run cp -R "$from/$stage" "$to/$stage.copy"
      run mv "$to/$stage.copy" "$to/$stage"
    fi
  done
}

for seed in $SEEDS; do
  while IFS='|' read -r name stages override shared; do
    read -r name <<<"$name"
    [[ -n $name ]] || continue
    read -r stages <<<"$stages"
    read -ra override <<<"$override"
    read -ra shared <<<"$shared"
    [[ $name == full ]] || override+=("${SINGLE_SAMPLE[@]}")
    folder=$WORKDIR/$name/$seed
    if ((${#shared[@]})); then
      copy_stages "$WORKDIR/full/$seed" "$folder" "${shared[@]}"
    fi
    run "$PYTHON" -m grm_jax.main --config="$CONFIG" --workdir="$folder" \
      --config.seed="$seed" --config.stages="$stages" \
      ${override[@]+"${override[@]}"} "$@" </dev/null
  done <<<"$RUNS"
done
# shellcheck disable=SC2086  # SEEDS is split into words
run "$PYTHON" -m benchmarks.ablations --workdir="$WORKDIR" --seeds $SEEDS
