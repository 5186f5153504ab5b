#!/usr/bin/env bash
# Table 10: the parts of RMB.
# shellcheck source=launch/paper/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

evaluate_all rmb
table 10
