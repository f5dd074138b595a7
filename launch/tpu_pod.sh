#!/usr/bin/env bash
# Trains on every worker of a Cloud TPU slice: copies a commit of this checkout to the workers,
# installs it there, runs `python -m diffusion_jax.main`, and starts it again after a preemption.
# Status 75 of the command means stopped by a signal, saved, not finished; 255 is ssh's own, for a
# lost connection. A slice that leaves the state READY takes its workers' processes with it.
set -euo pipefail

readonly EXIT_STOPPED=75 EXIT_DISCONNECTED=255
readonly POLL_SECONDS=30
readonly REMOTE_DIR="diffusion_jax_launch" # in the home directory of each worker

usage() {
  cat <<'EOF'
Usage: launch/tpu_pod.sh --name NAME --zone ZONE --workdir DIR --config FILE [options] [-- ARGS...]

Installs diffusion_jax on every worker of an existing TPU slice, and runs there
    python -m diffusion_jax.main --config=FILE --workdir=DIR ARGS...

Required:
  --name NAME         the TPU slice
  --zone ZONE         its zone, such as us-central2-b
  --workdir DIR       where the run is kept: an absolute path on a file system that all workers
                      share, such as an NFS mount; a gs:// bucket will not do, as checkpoints
                      are committed by renames
  --config FILE       config file, relative to the top of the repository

Options:
  --project PROJECT   Google Cloud project (default: that of gcloud's configuration)
  --ref REF           commit, branch or tag of this checkout to run (default: HEAD);
                      uncommitted changes are not sent
  --max-restarts N    starts again at most N times (default: 100)
  --ready-timeout S   waits at most S seconds for a preempted slice to be READY again
                      (default: 3600)
  --dry-run           print the commands without running them
  --help              show this help

Example:
  launch/tpu_pod.sh --name my-v5e-16 --zone us-west4-a --workdir /mnt/shared/cifar10 \
      --config configs/cifar10.py -- --config.train.batch_size=256

The command is started again, and continues the run, when
  - it was stopped by a signal, saved and did not finish (exit status 75), or
  - the connection was lost (255), or it failed and the slice is no longer READY: then this waits
    until the slice is READY, stops what still runs there, and installs again. It does not create
    a slice: one that is gone for good must be created anew, under the same name, by a queued
    resource or by hand.

Needs git and an authenticated gcloud here, and Python 3 with pip and a way to the package index
on the workers (uv is installed there, and brings the Python that the package needs).
Interrupting this script does not stop the workers.
Exit status: that of the command on the workers; 2 for wrong arguments.
EOF
}

fail() { # fail MESSAGE: wrong arguments.
  echo "tpu_pod.sh: $1" >&2
  exit 2
}

parse_arguments() {
  name="" zone="" workdir="" config="" project="" ref="HEAD" max_restarts=100 ready_timeout=3600
  dry_run=false
  arguments=()
  while [[ $# -gt 0 ]]; do
    local option=$1 value
    shift
    case $option in
      --) arguments=("$@") && return ;;
      --help | -h) usage && exit 0 ;;
      --dry-run) dry_run=true && continue ;;
      --name | --zone | --workdir | --config | --project | --ref | --max-restarts | --ready-timeout)
        [[ $# -gt 0 && $1 != -- ]] || fail "$option needs a value; see --help"
        value=$1
        shift
        ;;
      --name=* | --zone=* | --workdir=* | --config=* | --project=* | --ref=* | --max-restarts=* | \
        --ready-timeout=*)
        value=${option#*=}
        option=${option%%=*}
        ;;
      *) fail "unknown argument '$option'; see --help (arguments of the command come after --)" ;;
    esac
    [[ -n $value ]] || fail "$option is empty; see --help"
    option=${option#--}
    printf -v "${option//-/_}" %s "$value"
  done
}

check_arguments() {
  local option
  for option in name zone workdir config; do
    [[ -n ${!option} ]] || fail "--$option is missing; see --help"
  done
  [[ $workdir == /* ]] ||
    fail "--workdir '$workdir' is not an absolute path on a file system that all workers share"
  for option in max_restarts ready_timeout; do
    [[ ${!option} =~ ^[0-9]+$ ]] ||
      fail "--${option/_/-} '${!option}' is not a whole number of at least 0"
  done
  git -C "$root" rev-parse --quiet --verify "$ref^{commit}" >/dev/null ||
    fail "--ref '$ref' is not a commit of the checkout at $root"
  git -C "$root" cat-file -e "$ref:${config%%:*}" 2>/dev/null ||
    fail "--config '${config%%:*}' is not a file of commit '$ref'"
}

run() { # run COMMAND...: runs it, or prints it for --dry-run.
  if $dry_run; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

tpu() { # tpu ssh|scp|describe ARGS...
  run gcloud compute tpus tpu-vm "$@" --zone="$zone" ${project:+"--project=$project"}
}

install() { # Runs inside a condition, where `set -e` has no effect: hence `&&`.
  local archive=$scratch/$REMOTE_DIR.tar.gz
  # A lost connection can leave the command running: two runs must not share a workdir.
  # The TPU images' own Python can be older than the package allows, so uv brings one.
  run git -C "$root" archive --format=tar.gz --output="$archive" "$ref" &&
    tpu scp "$archive" "$name:" --worker=all &&
    tpu ssh "$name" --worker=all --command="set -eu
cd \"\$HOME\"
pid=\$(cat $REMOTE_DIR.pid 2>/dev/null || true)
tries=0
while [ -n \"\$pid\" ] && grep -qs diffusion_jax.main \"/proc/\$pid/cmdline\"; do
  [ \$tries -lt 300 ] || { echo \"process \$pid does not stop\" >&2; exit 1; }
  [ \$tries -gt 0 ] || kill \"\$pid\"
  tries=\$((tries + 1))
  sleep 1
done
rm -rf $REMOTE_DIR
mkdir $REMOTE_DIR
tar -xzf $REMOTE_DIR.tar.gz -C $REMOTE_DIR
cd $REMOTE_DIR
export PATH=\"\$HOME/.local/bin:\$PATH\"
command -v uv >/dev/null || python3 -m pip install --quiet --user uv
uv venv --quiet --python 3.12 .venv
uv pip install --quiet --python .venv/bin/python --editable '.[tpu]'"
}

train() { # Runs the command; its exit status is the workers'.
  local command
  # The longer form of "${arguments[@]}" is for macOS's bash, where an empty array is unbound.
  command=$(printf '%q ' env DIFFUSION_JAX_DISTRIBUTED=1 .venv/bin/python -m diffusion_jax.main \
    "--config=$config" "--workdir=$workdir" ${arguments[@]+"${arguments[@]}"})
  tpu ssh "$name" --worker=all --command="cd \"\$HOME/$REMOTE_DIR\" &&
echo \$\$ >../$REMOTE_DIR.pid && exec ${command% }"
}

attempt() {
  $installed || install || return
  installed=true
  train
}

slice_state() { # Prints READY, PREEMPTED, ...; nothing if there is no such slice.
  tpu describe "$name" --format='value(state)' || true
}

was_preempted() { # was_preempted STATUS: whether that, not the command, is why it ended.
  local state
  [[ $1 -ne 0 ]] && $installed || return
  [[ $1 -ne $EXIT_DISCONNECTED ]] || return 0
  state=$(slice_state)
  [[ -n $state && $state != READY ]]
}

wait_until_ready() {
  local waited=0
  echo "tpu_pod.sh: the workers are gone; waiting until '$name' is READY" >&2
  while
    sleep "$POLL_SECONDS"
    waited=$((waited + POLL_SECONDS))
    [[ $(slice_state) != READY ]]
  do
    if [[ $waited -ge $ready_timeout ]]; then
      echo "tpu_pod.sh: '$name' is not READY after $waited seconds" >&2
      return 1
    fi
  done
}

main() {
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  parse_arguments "$@"
  check_arguments
  if ! $dry_run && ! command -v gcloud >/dev/null; then
    echo "tpu_pod.sh: gcloud is not installed: it comes with the Google Cloud CLI" >&2
    exit 1
  fi
  if [[ -n $(git -C "$root" status --porcelain) ]]; then
    echo "tpu_pod.sh: note: uncommitted changes are not sent; running commit '$ref'" >&2
  fi
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT

  local restarts=0 status installed=false
  while true; do
    status=0
    attempt || status=$?
    if [[ $restarts -ge $max_restarts ]]; then
      exit "$status"
    elif was_preempted "$status"; then
      wait_until_ready || exit "$status"
      installed=false
    elif [[ $status -ne $EXIT_STOPPED ]]; then
      exit "$status"
    fi
    restarts=$((restarts + 1))
    echo "tpu_pod.sh: status $status; restart $restarts of at most $max_restarts" >&2
  done
}

main "$@"
