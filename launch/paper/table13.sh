#!/usr/bin/env bash
# Table 13: single responses (ReaLMistake, ROC-AUC).
# shellcheck source=launch/paper/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

evaluate initial realmistake --config.checkpoint="$INITIAL" --config.k=0
evaluate scalar realmistake --config.judge=scalar --config.checkpoint="$SCALAR"
evaluate grm realmistake --config.checkpoint="$GRM" --config.k="$K_BASELINE"
table 13
