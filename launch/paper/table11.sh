#!/usr/bin/env bash
# Table 11: RMB with whole lists and with pairs of their responses.
# shellcheck source=launch/paper/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

evaluate grm rmb --config.checkpoint="$GRM" --config.meta_checkpoint="$META_RM" \
  --config.k="$K"
evaluate grm_pairs rmb --config.checkpoint="$GRM" --config.k=0 \
  --config.rmb.lists=pairs
table 11
