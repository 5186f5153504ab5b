#!/usr/bin/env bash
# Table 1: the initial model with and without principles.
# shellcheck source=launch/paper/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

for suite in rewardbench ppe; do
  evaluate_principles "$suite"
done
table 1
