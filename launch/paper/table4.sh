#!/usr/bin/env bash
# Tables 4 and 7: trains the ablations, and judges all benchmarks with each.
# shellcheck source=launch/paper/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

ablations=$WORKDIR/ablations
run env WORKDIR="$ablations" CONFIG="$TRAIN" SEEDS=0 PYTHON="$PYTHON" \
  launch/ablations.sh ${dry_run:+--dry-run} --config.checkpoint="$INITIAL"
for suite in rewardbench ppe rmb; do
  evaluate full "$suite" --config.checkpoint="$ablations/full/0/grpo/model" \
    --config.meta_checkpoint="$ablations/full/0/meta_rm/model" --config.k="$K"
  evaluate no_principles_trained "$suite" --config.k="$K_BASELINE" \
    --config.checkpoint="$ablations/no_principles/0/grpo/model"
  for variant in full/0/rft no_rejective_sampling/0/grpo no_hinted/0/rft \
    no_unhinted/0/rft full/0/sft no_general_data/0/rft; do
    evaluate "${variant//\//_}" "$suite" --config.k=0 \
      --config.checkpoint="$ablations/$variant/model"
  done
done
table 4
