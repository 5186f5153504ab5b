#!/usr/bin/env bash
# Tables 3 and 6, Figures 1, 4a and 6: scaling with the number of samples.
# shellcheck source=launch/paper/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

for suite in rewardbench ppe rmb; do
  evaluate_all "$suite"
done
table 3
