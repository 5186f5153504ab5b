#!/usr/bin/env bash
# Table 8 and Figure 7: sections of RewardBench, and lengths by section.
# shellcheck source=launch/paper/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

evaluate_all rewardbench
table 8
