#!/usr/bin/env bash
# Table 9: the parts of PPE Correctness.
# shellcheck source=launch/paper/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

evaluate_all ppe
table 9
