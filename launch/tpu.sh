#!/usr/bin/env bash
# Runs a stage on a Cloud TPU slice, or on several: asks for it, sets it up,
# runs on all workers, brings results home, gives it back.
#
#   launch/tpu.sh [--dry-run] all FLAG...        create, setup, run, watch, delete
#   launch/tpu.sh [--dry-run] create             asks for the slice, waits for it
#   launch/tpu.sh [--dry-run] setup              the commit here, and its packages
#   launch/tpu.sh [--dry-run] run FLAG...        starts grm_jax.main on all workers
#   launch/tpu.sh [--dry-run] watch              waits for its end, shows its log
#   launch/tpu.sh [--dry-run] logs               the log of worker 0 so far
#   launch/tpu.sh [--dry-run] results FROM TO    copies a folder of worker 0 here
#   launch/tpu.sh [--dry-run] delete
#
#   PROJECT=p ZONE=us-east5-a NAME=judge TOPOLOGY=v5p:4x4x4 \
#     launch/tpu.sh all --config=configs/grpo.py --workdir=gs://BUCKET/grpo
#
# --dry-run prints the commands. FLAGs are those of `python -m grm_jax.main`.
# `all` begins again where a slice is preempted, and starts the run again where
# one of its processes was stopped or is gone (exit codes: see the docstring of
# grm_jax/main.py): give a --workdir on gs://, and it goes on where it was
# saved. A run that fails by itself keeps its slice, to be looked at. From the
# environment:
#
#   PROJECT, ZONE   of Google Cloud; needed
#   NAME            of the queued resource; needed
#   TOPOLOGY        GENERATION:SHAPE as in configs/aot.py; needed
#   SLICES          how many of them; default 1
#   SPOT            1: cheaper, and may be taken away; default 0
#   RESERVED        1: from a reservation; default 0
#   RUNTIME         image of the machines; default: what goes with TOPOLOGY
#   RETRIES         times that `all` begins again; default 10
#   PAUSE           seconds between two looks; default 30
#   SIZE            of Gemma-2: 2b, 9b or 27b. What configs/tpu.txt recommends
#                   for it, TOPOLOGY and the stage is given before FLAGs;
#                   default none
#   FLAGS           LIBTPU_INIT_ARGS of the run; default what is recommended
#
# Needs gcloud, signed in, and a commit: what is not committed does not travel.
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
RUNNING='.venv/bin/python -m grm_jax.main'
STOPPED=75         # status of what is to be begun again: EX_TEMPFAIL

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
      fail "$key is not set; give it in the environment, such as $key=..."
  done
  GENERATION=${TOPOLOGY%%:*}
  SHAPE=${TOPOLOGY#*:}
  case $GENERATION in
  v4) image=tpu-ubuntu2204-base type=v4 ;;
  v5e) image=v2-alpha-tpuv5-lite type=v5litepod ;;
  v5p) image=v2-alpha-tpuv5 type=v5p ;;
  v6e) image=v2-alpha-tpuv6e type=v6e ;;
  *) fail "TOPOLOGY is $TOPOLOGY; it is v4, v5e, v5p or v6e with a shape, such as v5p:4x4x4" ;;
  esac
  [[ $SHAPE =~ ^[0-9]+(x[0-9]+){1,2}$ && $SHAPE != "$TOPOLOGY" ]] ||
    fail "TOPOLOGY is $TOPOLOGY; its shape is such as 4x4 or 4x4x4"
  [[ $SLICES =~ ^[1-9][0-9]*$ ]] || fail "SLICES is $SLICES; it is 1 or more"
  [[ -n $dry_run ]] || command -v gcloud >/dev/null ||
    fail 'gcloud is not installed; see cloud.google.com/sdk/docs/install'
}

tpus() {
  run gcloud compute tpus "$@" --project="$PROJECT" --zone="$ZONE" --quiet
}

nodes() {
  if ((SLICES == 1)); then
    printf '%s\n' "$NAME"
  else
    seq -f "$NAME-%.0f" 0 $((SLICES - 1))
  fi
}

# What gcloud says of the queued resource; ABSENT where there is none.
state() {
  tpus queued-resources describe "$NAME" --format='value(state.state)' \
    2>/dev/null || printf 'ABSENT\n'
}

create() {
  local -a given=(--type="$type" --topology="$SHAPE")
  given+=(--runtime-version="${RUNTIME:-$image}")
  if ((SLICES == 1)); then
    given+=(--node-id="$NAME")
  else
    given+=(--node-count="$SLICES" --node-prefix="$NAME")
  fi
  ((SPOT == 0)) || given+=(--spot)
  ((RESERVED == 0)) || given+=(--reserved)
  tpus queued-resources create "$NAME" "${given[@]}" || return
  [[ -z $dry_run ]] || return 0
  local found
  until found=$(state) && [[ $found == ACTIVE ]]; do
    case $found in
    SUSPENDED | ABSENT) return "$STOPPED" ;;
    FAILED)
      printf 'error: the queued resource is %s\n' "$found" >&2
      return 1
      ;;
    esac
    printf 'waiting: %s\n' "$found" >&2
    sleep "$PAUSE"
  done
}

# A command on workers of every node: on_workers WHICH COMMAND
on_workers() {
  local node
  for node in $(nodes); do
    tpus tpu-vm ssh "$node" --worker="$1" --command="$2" || return
  done
}

# The first worker of the first node has the log and the files of the run.
on_first() {
  tpus tpu-vm ssh "$(nodes | head -n 1)" --worker=0 --command="$1"
}

setup() {
  local node archive
  archive=$(mktemp -d)/code.tar.gz
  run git archive --format=tar.gz --output="$archive" HEAD || return
  for node in $(nodes); do
    tpus tpu-vm scp "$archive" "$node:code.tar.gz" --worker=all || return
  done
  # The images have Python 3.10, which is too old; uv brings another one.
  on_workers all "rm -rf $FOLDER && mkdir $FOLDER \
&& tar xzf code.tar.gz -C $FOLDER && cd $FOLDER \
&& python3 -m pip install -q --user uv \
&& python3 -m uv venv -q --python 3.11 .venv \
&& python3 -m uv pip install -q --python .venv/bin/python \
-r requirements-tpu.txt"
}

# A column of the row for this slice, this size and this stage: 4 has the
# overrides, 5 what libtpu is given, names replaced by what they stand for.
recommended() {
  awk -F ' *[|] *' -v column="$2" -v key="$TOPOLOGY|$SIZE|$1" '
    match($0, /^[a-z0-9_]+ = /) {
      named[substr($0, 1, RLENGTH - 3)] = substr($0, RLENGTH + 1)
    }
    $1 "|" $2 "|" $3 == key {
      count = split($column, words, " ")
      for (i = 1; i <= count; i++) {
        printf "%s%s", words[i] in named ? named[words[i]] : words[i], \
          i < count ? " " : "\n"
      }
    }' "$TABLE"
}

# What a worker does when the run has ended: writes its status. A run that was
# asked to stop and saved says so and ends with 0; one that was asked where
# nothing is to be saved ends with 143, one whose other processes are gone with
# 134, aborted by JAX.
ENDING="status=\$?; case \$status in 134 | 143) status=$STOPPED ;; esac; \
if tail -n 20 run.log | grep -q 'run the same command to resume\$'; \
then status=$STOPPED; fi; echo \$status > run.exit"

start() {
  (($# > 0)) || fail 'run needs the flags of grm_jax.main, such as --config=...'
  local quoted stage libtpu='' flag
  local -a all=("$@") own=()
  if [[ -n $SIZE ]]; then
    # What is recommended goes behind the config's name, where flags that come
    # later win over it.
    all=()
    for flag in "$@"; do
      all+=("$flag")
      if [[ $flag =~ ^--config=(.*/)?([a-z_]+)\.py ]]; then
        stage=${BASH_REMATCH[2]}
        read -ra own <<<"$(recommended "$stage" 4)"
        libtpu=$(recommended "$stage" 5)
        all+=(${own[@]+"${own[@]}"})
      fi
    done
    ((${#own[@]})) || fail "$TABLE has no row for TOPOLOGY=$TOPOLOGY, SIZE=$SIZE\
 and the stage ${stage:-?}; set no SIZE and give the mesh by --config.mesh.KEY=N"
  fi
  quoted=$(printf ' %q' "${all[@]}")
  ((SLICES == 1)) || quoted+=" --config.mesh.num_slices=$SLICES"
  # What is left of a run before would hold the chips. And away from the ssh
  # session: a lost connection ends no run.
  on_workers all "cd $FOLDER && { pkill -KILL -f '^$RUNNING' && sleep 5; \
rm -f run.exit; } && nohup bash -c \
$(printf %q "GRM_COORDINATOR=auto LIBTPU_INIT_ARGS=$(printf %q "${FLAGS-$libtpu}") \
$RUNNING$quoted; $ENDING") \
> run.log 2>&1 < /dev/null &"
}

# The exit status of the run, '' while it goes on.
ended() {
  on_first "cat $FOLDER/run.exit 2>/dev/null || true"
}

# Waits for the end of a run: its status, or 75 where it can be begun again.
watch() {
  local status found
  if [[ -n $dry_run ]]; then
    ended
    logs
    return 0
  fi
  while true; do
    status=$(ended 2>/dev/null) || status=
    if [[ -n $status ]]; then
      logs
      printf 'the run ended with %s\n' "$status" >&2
      return "$status"
    fi
    found=$(state)
    if [[ $found != ACTIVE ]]; then
      printf 'the slice is %s\n' "$found" >&2
      return "$STOPPED"
    fi
    sleep "$PAUSE"
  done
}

logs() {
  on_first "tail -n 200 $FOLDER/run.log"
}

results() {
  (($# == 2)) || fail 'results needs FROM (on worker 0) and TO (here)'
  tpus tpu-vm scp --recurse "$(nodes | head -n 1):$FOLDER/$1" "$2" --worker=0
}

delete() {
  tpus queued-resources delete "$NAME" --force
}

is_up() {
  [[ $(state) == ACTIVE ]]
}

# What failed with this status: it is no error where the slice is gone.
lost() {
  ! is_up || return "$1"
  return "$STOPPED"
}

all() {
  local try status ready=
  for ((try = 0; try <= RETRIES; try++)); do
    status=0
    if [[ -z $ready ]]; then
      { create && { setup || lost $?; } && ready=1; } || status=$?
    fi
    if [[ -n $ready ]]; then
      { { start "$@" || lost $?; } && watch; } || status=$?
    fi
    if [[ -n $dry_run ]] || ((status == 0)); then
      delete
      return
    fi
    if ((status != STOPPED)); then
      printf 'error: ended with %s; what there is is kept: %s\n' \
        "$status" 'see launch/tpu.sh logs, then delete it' >&2
      return "$status"
    fi
    sleep "$PAUSE" # who is asked to stop may be about to be taken away
    if [[ -n $ready ]] && is_up; then
      printf 'the run was stopped; starting it again\n' >&2
      continue
    fi
    printf 'the slice was taken away; beginning again\n' >&2
    ready=
    [[ $(state) == ABSENT ]] || delete || return
  done
  fail "stopped or taken away $((RETRIES + 1)) times; raise RETRIES to go on"
}

command=${1:-}
[[ -z $command ]] || shift
case $command in
create | setup | watch | logs | delete)
  (($# == 0)) || fail "$command takes no arguments, got $*"
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
*) fail "$command is no command; launch/tpu.sh --help lists them" ;;
esac
