#!/usr/bin/env bash
# Table 15: RewardBench after training with and without MATH.
# shellcheck source=launch/paper/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# The sources of configs/spct.py:paper except MATH.
WITHOUT_MATH=${WITHOUT_MATH:-ultrafeedback:data/ultrafeedback/*.jsonl,\
offsetbias:data/offsetbias,skywork:data/skywork,helpsteer2:data/helpsteer2}
without_math=$WORKDIR/without_math
run "$PYTHON" -m grm_jax.main --config="$TRAIN" --workdir="$without_math" \
  --config.checkpoint="$INITIAL" --config.data="$WITHOUT_MATH"
evaluate grm rewardbench --config.checkpoint="$GRM" \
  --config.meta_checkpoint="$META_RM" --config.k="$K"
evaluate without_math rewardbench --config.k=0 \
  --config.checkpoint="$without_math/grpo/model"
table 15
