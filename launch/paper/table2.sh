#!/usr/bin/env bash
# Table 2: all judges on all benchmarks.
# shellcheck source=launch/paper/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

for suite in rewardbench ppe rmb; do
  evaluate_all "$suite"
done
table 2
