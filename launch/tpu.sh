#!/usr/bin/env bash
# Runs a stage on one or several Cloud TPU slices: creates the slices, installs
# the code, runs on all workers, copies results, deletes the slices.
#
#   launch/tpu.sh [--dry-run] all FLAG...        create, setup, run, watch, delete
#   launch/tpu.sh [--dry-run] create             requests the slice and waits for it
#   launch/tpu.sh [--dry-run] setup              installs the current commit and its packages
#   launch/tpu.sh [--dry-run] run FLAG...        starts grm_jax.main on all workers
#   launch/tpu.sh [--dry-run] watch              waits for the end of the run, prints its log
#   launch/tpu.sh [--dry-run] logs               prints the last lines of the log of worker 0
#   launch/tpu.sh [--dry-run] results FROM TO    copies a folder from worker 0 to this machine
#   launch/tpu.sh [--dry-run] delete             deletes the slice
#
#   PROJECT=p ZONE=us-east5-a NAME=judge TOPOLOGY=v5p:4x4x4 \
#     launch/tpu.sh all --config=configs/grpo.py --workdir=gs://BUCKET/grpo
#
# --dry-run prints the commands. FLAGs are the flags of `python -m grm_jax.main`.
# `all` creates a new slice after a preemption and restarts the run after one of
# its processes stopped or died (the docstring of grm_jax/main.py lists the exit
# codes). With a --workdir on gs://, the run resumes from its last checkpoint. If
# the run fails with an error, its slice is kept for inspection.
# Environment variables:
#
#   PROJECT, ZONE   Google Cloud project and zone; required
#   NAME            name of the queued resource; required
#   TOPOLOGY        GENERATION:SHAPE as in configs/aot.py; required
#   SLICES          number of slices; default 1
#   SPOT            1: spot capacity, cheaper and preemptible; default 0
#   RESERVED        1: use a reservation; default 0
#   RUNTIME         runtime image of the TPU VMs; default depends on TOPOLOGY
#   RETRIES         number of restarts by `all`; default 10
#   PAUSE           seconds between two polls; default 30
#   SIZE            Gemma-2 size: 2b, 9b or 27b; with adapters 2b-lora, 9b-lora
#                   or 27b-lora. Adds the overrides of configs/tpu.txt for this
#                   size, TOPOLOGY and stage; FLAGs take precedence. Default: no
#                   overrides
#   FLAGS           LIBTPU_INIT_ARGS of the run; default from configs/tpu.txt
#
# Requires gcloud with a signed-in account. Only committed files are installed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

SLICES=${SLICES:-1}
SPOT=${SPOT:-0}
RESERVED=${RESERVED:-0}
RETRIES=${RETRIES:-10}
PAUSE=${PAUSE:-30}
SIZE=${SIZE:-}
TABLE=configs/tpu.txt
FOLDER=grm_jax_run # on the workers
COMMAND='.venv/bin/python -m grm_jax.main'
RETRY_STATUS=75 # EX_TEMPFAIL: the run can be restarted

dry_run=
if [[ ${1:-} == --dry-run ]]; then
  dry_run=1
  shift
fi

fail() {
  printf 'error: %s\n' "$1" >&2
  exit 2
}

usage() {
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' launch/tpu.sh
}

# Prints a command, and runs it unless this is a dry run.
run() {
  printf '%s' "$1" >&2
  printf ' %q' "${@:2}" >&2
  printf '\n' >&2
  if [[ -z $dry_run ]]; then
    "$@"
  fi
}

check() {
  local key
  for key in PROJECT ZONE NAME TOPOLOGY; do
    [[ -n ${!key:-} ]] ||
      fail "$key is not set; set the environment variable $key=..."
  done
  GENERATION=${TOPOLOGY%%:*}
  SHAPE=${TOPOLOGY#*:}
  case $GENERATION in
  v4) image=tpu-ubuntu2204-base type=v4 ;;
  v5e) image=v2-alpha-tpuv5-lite type=v5litepod ;;
  v5p) image=v2-alpha-tpuv5 type=v5p ;;
  v6e) image=v2-alpha-tpuv6e type=v6e ;;
  *) fail "TOPOLOGY=$TOPOLOGY is invalid; use v4, v5e, v5p or v6e with a shape, for example v5p:4x4x4" ;;
  esac
  [[ $SHAPE =~ ^[0-9]+(x[0-9]+){1,2}$ && $SHAPE != "$TOPOLOGY" ]] ||
    fail "TOPOLOGY=$TOPOLOGY has no valid shape; use a shape such as 4x4 or 4x4x4"
  [[ $SLICES =~ ^[1-9][0-9]*$ ]] || fail "SLICES=$SLICES is invalid; use a number >= 1"
  [[ -n $dry_run ]] || command -v gcloud >/dev/null ||
    fail 'gcloud is not installed; see cloud.google.com/sdk/docs/install'
}

# Runs a gcloud command on TPUs.
gcloud_tpus() {
  run gcloud compute tpus "$@" --project="$PROJECT" --zone="$ZONE" --quiet
}

# Prints the names of the nodes, one per slice.
nodes() {
  if ((SLICES == 1)); then
    printf '%s\n' "$NAME"
  else
    seq -f "$NAME-%.0f" 0 $((SLICES - 1))
  fi
}

# Prints the state of the queued resource; ABSENT if it does not exist.
state() {
  gcloud_tpus queued-resources describe "$NAME" --format='value(state.state)' \
    2>/dev/null || printf 'ABSENT\n'
}

create() {
  local -a flags=(--type="$type" --topology="$SHAPE")
  flags+=(--runtime-version="${RUNTIME:-$image}")
  if ((SLICES == 1)); then
    flags+=(--node-id="$NAME")
  else
    flags+=(--node-count="$SLICES" --node-prefix="$NAME")
  fi
  ((SPOT == 0)) || flags+=(--spot)
  ((RESERVED == 0)) || flags+=(--reserved)
  gcloud_tpus queued-resources create "$NAME" "${flags[@]}" || return
  [[ -z $dry_run ]] || return 0
  local current
  until current=$(state) && [[ $current == ACTIVE ]]; do
    case $current in
    SUSPENDED | ABSENT) return "$RETRY_STATUS" ;;
    FAILED)
      printf 'error: the queued resource has state %s\n' "$current" >&2
      return 1
      ;;
    esac
    printf 'waiting for the queued resource: %s\n' "$current" >&2
    sleep "$PAUSE"
  done
}

# Runs a command on workers of every node: on_workers WORKERS COMMAND
on_workers() {
  local node
  for node in $(nodes); do
    gcloud_tpus tpu-vm ssh "$node" --worker="$1" --command="$2" || return
  done
}

# Runs a command on worker 0 of the first node, which has the log and the files.
on_first() {
  gcloud_tpus tpu-vm ssh "$(nodes | head -n 1)" --worker=0 --command="$1"
}

# Copies the current commit to all workers and installs its packages.
setup() {
  local node archive
  archive=$(mktemp -d)/code.tar.gz
  run git archive --format=tar.gz --output="$archive" HEAD || return
  for node in $(nodes); do
    gcloud_tpus tpu-vm scp "$archive" "$node:code.tar.gz" --worker=all || return
  done
  # The runtime images have Python 3.10, which is too old; uv installs 3.11.
  on_workers all "rm -rf $FOLDER && mkdir $FOLDER \
&& tar xzf code.tar.gz -C $FOLDER && cd $FOLDER \
&& python3 -m pip install -q --user uv \
&& python3 -m uv venv -q --python 3.11 .venv \
&& python3 -m uv pip install -q --python .venv/bin/python \
-r requirements-tpu.txt"
}

# Prints a column of the row of configs/tpu.txt for TOPOLOGY, SIZE and a stage:
# recommended STAGE COLUMN. Column 4 has the overrides, column 5 the libtpu flags
# with names replaced by their values.
recommended() {
  awk -F ' *[|] *' -v column="$2" -v key="$TOPOLOGY|$SIZE|$1" '
    match($0, /^[a-z0-9_]+ = /) {
      flags_of[substr($0, 1, RLENGTH - 3)] = substr($0, RLENGTH + 1)
    }
    $1 "|" $2 "|" $3 == key {
      count = split($column, words, " ")
      for (i = 1; i <= count; i++) {
        printf "%s%s", words[i] in flags_of ? flags_of[words[i]] : words[i], \
          i < count ? " " : "\n"
      }
    }' "$TABLE"
}

# Commands on a worker after the end of the run, which write its exit status. A
# run that saved a checkpoint on SIGTERM exits with 0 and a message; a run without
# checkpoints exits with 143; JAX aborts with 134 when other processes died.
WRITE_STATUS="status=\$?; case \$status in 134 | 143) status=$RETRY_STATUS ;; esac; \
if tail -n 20 run.log | grep -q 'run the same command to resume\$'; \
then status=$RETRY_STATUS; fi; echo \$status > run.exit"

# Starts grm_jax.main on all workers: start FLAG...
start() {
  (($# > 0)) || fail 'run needs flags of grm_jax.main, for example --config=...'
  local quoted stage libtpu='' flag
  local -a all=("$@") overrides=()
  if [[ -n $SIZE ]]; then
    # The overrides follow --config directly, so that later flags take
    # precedence.
    all=()
    for flag in "$@"; do
      all+=("$flag")
      if [[ $flag =~ ^--config=(.*/)?([a-z_]+)\.py ]]; then
        stage=${BASH_REMATCH[2]}
        read -ra overrides <<<"$(recommended "$stage" 4)"
        libtpu=$(recommended "$stage" 5)
        all+=(${overrides[@]+"${overrides[@]}"})
      fi
    done
    ((${#overrides[@]})) || fail "$TABLE has no row for TOPOLOGY=$TOPOLOGY, SIZE=$SIZE\
 and stage=${stage:-?}; unset SIZE and set the mesh with --config.mesh.KEY=N"
  fi
  quoted=$(printf ' %q' "${all[@]}")
  ((SLICES == 1)) || quoted+=" --config.mesh.num_slices=$SLICES"
  # Processes of an earlier run would keep the chips busy. nohup detaches the run
  # from the ssh session, so that it survives a lost connection.
  on_workers all "cd $FOLDER && { pkill -KILL -f '^$COMMAND' && sleep 5; \
rm -f run.exit; } && nohup bash -c \
$(printf %q "GRM_COORDINATOR=auto LIBTPU_INIT_ARGS=$(printf %q "${FLAGS-$libtpu}") \
$COMMAND$quoted; $WRITE_STATUS") \
> run.log 2>&1 < /dev/null &"
}

# Prints the exit status of the run, '' while it is running.
exit_status() {
  on_first "cat $FOLDER/run.exit 2>/dev/null || true"
}

# Waits for the end of the run; returns its status, 75 if it can be restarted.
watch() {
  local status current
  if [[ -n $dry_run ]]; then
    exit_status
    logs
    return 0
  fi
  while true; do
    status=$(exit_status 2>/dev/null) || status=
    if [[ -n $status ]]; then
      logs
      printf 'the run exited with status %s\n' "$status" >&2
      return "$status"
    fi
    current=$(state)
    if [[ $current != ACTIVE ]]; then
      printf 'the slice has state %s\n' "$current" >&2
      return "$RETRY_STATUS"
    fi
    sleep "$PAUSE"
  done
}

logs() {
  on_first "tail -n 200 $FOLDER/run.log"
}

results() {
  (($# == 2)) || fail 'results needs two paths: FROM on worker 0 and TO on this machine'
  gcloud_tpus tpu-vm scp --recurse "$(nodes | head -n 1):$FOLDER/$1" "$2" --worker=0
}

delete() {
  gcloud_tpus queued-resources delete "$NAME" --force
}

is_up() {
  [[ $(state) == ACTIVE ]]
}

# Maps the status of a failed command: a failure on a lost slice can be retried.
retry_if_lost() {
  ! is_up || return "$1"
  return "$RETRY_STATUS"
}

# Runs everything, with restarts after preemptions and stopped processes.
all() {
  local try status ready=
  for ((try = 0; try <= RETRIES; try++)); do
    status=0
    if [[ -z $ready ]]; then
      { create && { setup || retry_if_lost $?; } && ready=1; } || status=$?
    fi
    if [[ -n $ready ]]; then
      { { start "$@" || retry_if_lost $?; } && watch; } || status=$?
    fi
    if [[ -n $dry_run ]] || ((status == 0)); then
      delete
      return
    fi
    if ((status != RETRY_STATUS)); then
      printf 'error: exited with status %s; the slice is kept: %s\n' "$status" \
        'see launch/tpu.sh logs, then run launch/tpu.sh delete' >&2
      return "$status"
    fi
    sleep "$PAUSE" # a stopped run often precedes a preemption of its slice
    if [[ -n $ready ]] && is_up; then
      printf 'the run was stopped; restarting it\n' >&2
      continue
    fi
    printf 'the slice was preempted; creating a new one\n' >&2
    ready=
    [[ $(state) == ABSENT ]] || delete || return
  done
  fail "stopped or preempted $((RETRIES + 1)) times; raise RETRIES to continue"
}

command=${1:-}
[[ -z $command ]] || shift
case $command in
create | setup | watch | logs | delete)
  (($# == 0)) || fail "$command takes no arguments, but got: $*"
  check
  "$command"
  ;;
run)
  check
  start "$@"
  ;;
results | all)
  check
  "$command" "$@"
  ;;
'' | help | --help | -h) usage ;;
*) fail "unknown command $command; see launch/tpu.sh --help" ;;
esac
