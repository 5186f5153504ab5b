#!/usr/bin/env bash
# Table 12: PPE Correctness with the correct answers as references.
# shellcheck source=launch/paper/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

evaluate grm ppe --config.checkpoint="$GRM" --config.meta_checkpoint="$META_RM" \
  --config.k="$K"
evaluate grm_reference ppe --config.checkpoint="$GRM" --config.k=0 \
  --config.ppe.references=True
table 12
