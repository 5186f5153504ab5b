#!/usr/bin/env bash
# Table 14: principles of one model, used by another.
# shellcheck source=launch/paper/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

for suite in rewardbench ppe; do
  evaluate_principles "$suite"
  evaluate grm "$suite" --config.checkpoint="$GRM" \
    --config.meta_checkpoint="$META_RM" --config.k="$K"
  evaluate grm_principles "$suite" --config.checkpoint="$GRM" \
    --config.prompt.template=critique --config.k="$K_BASELINE"
  evaluate initial_with_grm_principles "$suite" \
    --config.checkpoint="$INITIAL" --config.k=0 \
    --config.prompt.template=critique \
    --config.principles="$WORKDIR/grm_principles/$suite/$suite.samples.jsonl"
  evaluate grm_with_filtered_principles "$suite" \
    --config.checkpoint="$GRM" --config.k=0 \
    --config.prompt.template=critique \
    --config.principles="$WORKDIR/self_generated/$suite/$suite.samples.jsonl"
done
table 14
