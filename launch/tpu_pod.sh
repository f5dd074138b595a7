#!/usr/bin/env bash
# Trains on every worker of a Cloud TPU slice: creates it, copies a commit of this checkout to the workers,
# installs it there, runs `python -m diffusion_jax.main`, starts it again after a preemption, and deletes it.
# Status 75 of the command means stopped by a signal, saved, not finished; 255 is ssh's own, for a
# lost connection. A slice that leaves the state READY takes its workers' processes with it.
set -euo pipefail

readonly EXIT_STOPPED=75 EXIT_DISCONNECTED=255
readonly POLL_SECONDS=30
readonly REMOTE_DIR="diffusion_jax_launch" # in the home directory of each worker

usage() {
  cat <<'EOF'
Usage: launch/tpu_pod.sh [run] --name NAME --zone ZONE --workdir DIR --config FILE [options] [-- ARGS...]
       launch/tpu_pod.sh create|install|resume|tail|delete --name NAME --zone ZONE [options] [-- ARGS...]

Commands:
  create    asks for the slice by a queued resource of the same name; Google bills it once it is there
  install   copies this checkout to every worker and installs it
  run       installs, and runs on every worker (the default)
                python -m diffusion_jax.main --config=FILE --workdir=DIR ARGS...
  resume    the same, but creates the slice anew whenever it is gone, as a spot slice is in the end
  tail      follows what the command prints on the workers; a run shows it too
  delete    deletes the queued resource with its slice

Required:
  --name NAME         the TPU slice
  --zone ZONE         its zone, such as us-central2-b
  --workdir DIR       of run and resume: where the run is kept: gs://BUCKET/PATH, or an absolute path on a file
                      system that all workers share, such as an NFS mount. With checkpoints in a bucket
                      (--config.train.checkpoint_dir=gs://...) any folder of the workers will
  --config FILE       of run and resume: config file, relative to the top of the repository, or a name, such as digits
  --accelerator TYPE  of create and resume: such as v5e-16, v5litepod-16 or v5e:4x4 (one slice), v4-16,
                      v5p-16 or v6e-16; the names of v4 and v5p count cores, two a chip

Options:
  --project PROJECT   Google Cloud project (default: that of gcloud's configuration)
  --spot              of create and resume: a slice that costs less and can be taken away at any time
  --runtime-version V of create and resume: software of the workers (default: that of the accelerator)
  --worker W          of tail: number of the worker, or all (default: 0)
  --ref REF           of install, run and resume: commit, branch or tag of this checkout (default: HEAD);
                      uncommitted changes are not sent
  --max-restarts N    of run and resume: starts again at most N times (default: 100)
  --ready-timeout S   of run and resume: waits at most S seconds for a preempted or new slice to be READY
                      (default: 3600)
  --dry-run           print the commands without running them
  --help              show this help

Example:
  launch/tpu_pod.sh --name my-v5e-16 --zone us-west4-a --workdir /mnt/shared/cifar10 \
      --config configs/cifar10.py -- --config.train.batch_size=256

The command is started again, and continues the run, when
  - it was stopped by a signal, saved and did not finish (exit status 75), or
  - the connection was lost (255), or it failed and the slice is no longer READY: then this waits
    until the slice is READY, stops what still runs there, and installs again. Only resume
    creates the slice anew; run waits until somebody has, under the same name.

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

options_of() { # options_of COMMAND: prints the options that it takes, besides --help.
  local options="name zone project dry-run"
  case $1 in
    create) options+=" accelerator runtime-version spot" ;;
    install) options+=" ref" ;;
    run) options+=" ref workdir config max-restarts ready-timeout" ;;
    resume)
      options="$(options_of run) accelerator runtime-version spot"
      ;;
    tail) options+=" worker" ;;
    delete) ;;
    *) return 1 ;;
  esac
  echo "$options"
}

takers() { # takers OPTION: prints the commands that take it.
  local name found=""
  for name in create install run resume tail delete; do
    [[ " $(options_of "$name") " != *" $1 "* ]] || found+="${found:+, }$name"
  done
  echo "$found"
}

parse_arguments() {
  name="" zone="" workdir="" config="" project="" ref="HEAD" max_restarts=100 ready_timeout=3600
  accelerator="" runtime_version="" spot=false worker=0 dry_run=false command=run
  arguments=()
  if [[ $# -gt 0 && $1 != -* ]]; then
    command=$1
    shift
  fi
  local options
  options=$(options_of "$command") || fail "unknown command '$command'; see --help"
  while [[ $# -gt 0 ]]; do
    local option=$1 value="" given=false
    shift
    case $option in
      --) arguments=("$@") && break ;;
      --help | -h) usage && exit 0 ;;
      --*=*) given=true value=${option#*=} ;;
    esac
    local key=${option%%=*}
    [[ $key == --* && " $(options_of resume) worker " == *" ${key#--} "* ]] ||
      fail "unknown argument '$option'; see --help (arguments of the command come after --)"
    [[ " $options " == *" ${key#--} "* ]] ||
      fail "$key is not an option of '$command', only of $(takers "${key#--}"); see --help"
    case $option in --dry-run | --spot) value=true ;; *)
      if ! $given; then
        [[ $# -gt 0 && $1 != -- ]] || fail "$key needs a value; see --help"
        value=$1
        shift
      fi
      ;;
    esac
    [[ -n $value ]] || fail "$key is empty; see --help"
    case $key in --dry-run | --spot) [[ $option == "$key" ]] || fail "$key takes no value" ;; esac
    key=${key#--}
    printf -v "${key//-/_}" %s "$value"
  done
}

check_arguments() {
  local option options required="name zone"
  options=" $(options_of "$command") "
  for option in workdir config accelerator; do
    [[ $options != *" $option "* ]] || required+=" $option"
  done
  for option in $required; do
    [[ -n ${!option} ]] || fail "--$option is missing; see --help"
  done
  for option in max_restarts ready_timeout; do
    [[ ${!option} =~ ^(0|[1-9][0-9]*)$ ]] ||
      fail "--${option/_/-} '${!option}' is not a whole number of at least 0"
  done
  [[ $worker =~ ^([0-9]+|all)$ ]] || fail "--worker '$worker' is neither a number nor 'all'"
  [[ $options != *" accelerator "* ]] || check_accelerator
  [[ $options != *" workdir "* ]] || [[ $workdir == /* || $workdir == gs://?* ]] ||
    fail "--workdir '$workdir' is neither gs://BUCKET/PATH nor an absolute path on a file system that all workers share"
  [[ $options == *" workdir "* || ${#arguments[@]} -eq 0 ]] ||
    fail "'$command' takes no arguments after --; see --help"
  [[ $options != *" ref "* ]] || check_commit
}

check_accelerator() { # Makes accelerator Google's name, and sets runtime_version, if it is not given.
  local found version
  found=$(find_slice "$accelerator") || fail "--accelerator $found"
  accelerator=${found##* }
  case $accelerator in
    v4-*) version=tpu-ubuntu2204-base ;;
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v6e-*) version=v2-alpha-tpuv6e ;;
  esac
  runtime_version=${runtime_version:-$version}
}

check_commit() {
  git -C "$root" rev-parse --quiet --verify "$ref^{commit}" >/dev/null ||
    fail "--ref '$ref' is not a commit of the checkout at $root"
  local file=${config%%:*}
  [[ $file == *[./]* ]] || file=${file:+configs/$file.py} # A recipe's name, such as digits.
  [[ -z $file ]] || git -C "$root" cat-file -e "$ref:$file" 2>/dev/null ||
    fail "--config '$file' is not a file of commit '$ref'"
  if [[ -n $(git -C "$root" status --porcelain) ]]; then
    echo "tpu_pod.sh: note: uncommitted changes are not sent; running commit '$ref'" >&2
  fi
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

queue() { # queue create|delete ARGS...
  run gcloud compute tpus queued-resources "$1" "$name" "${@:2}" --zone="$zone" \
    ${project:+"--project=$project"}
}

create() {
  local options=("--node-id=$name" "--accelerator-type=$accelerator" "--runtime-version=$runtime_version")
  ! $spot || options+=(--spot)
  queue create "${options[@]}"
}

delete() {
  queue delete --force --quiet
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
uv pip install --quiet --python .venv/bin/python --editable '.[tpu,gcs]'"
}

train() { # Runs the command; its exit status is the workers'.
  local words
  # The longer form of "${arguments[@]}" is for macOS's bash, where an empty array is unbound.
  words=$(printf '%q ' env DIFFUSION_JAX_DISTRIBUTED=1 .venv/bin/python -m diffusion_jax.main \
    "--config=$config" "--workdir=$workdir" ${arguments[@]+"${arguments[@]}"})
  tpu ssh "$name" --worker=all --command="cd \"\$HOME/$REMOTE_DIR\" &&
echo \$\$ >../$REMOTE_DIR.pid &&
exec ${words% } > >(tee -a ../$REMOTE_DIR.log) 2> >(tee -a ../$REMOTE_DIR.log >&2)"
}

attempt() {
  $installed || install || return
  installed=true
  train
}

slice_state() { # Prints READY, PREEMPTED, ..., GONE if there is no such slice; nothing if gcloud cannot say.
  tpu describe "$name" --format='value(state)' 2>"$scratch/said" && return
  ! grep -q NOT_FOUND "$scratch/said" || echo GONE
  cat "$scratch/said" >&2
}

was_preempted() { # was_preempted STATUS: whether that, not the command, is why it ended.
  local state
  [[ $1 -ne 0 ]] && $installed || return
  [[ $1 -ne $EXIT_DISCONNECTED ]] || return 0
  state=$(slice_state)
  [[ -n $state && $state != READY ]] && { [[ $state != GONE ]] || [[ $command == resume ]]; }
}

create_if_gone() { # Creates a slice that is gone for good: a preempted queued resource stays so.
  case $(slice_state) in
    GONE | PREEMPTED | TERMINATED | STOPPED) ;;
    *) return ;; # It is there, is coming, or gcloud could not be asked: nothing may be deleted.
  esac
  echo "tpu_pod.sh: '$name' is gone; creating it again" >&2
  delete || true # There may be none.
  create
}

wait_until_ready() {
  local waited=0
  [[ $command != resume ]] || create_if_gone || return
  echo "tpu_pod.sh: waiting until '$name' is READY" >&2
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
  # shellcheck source=/dev/null
  source "$root/launch/slices.sh"
  parse_arguments "$@"
  check_arguments
  if ! $dry_run && ! command -v gcloud >/dev/null; then
    echo "tpu_pod.sh: gcloud is not installed: it comes with the Google Cloud CLI" >&2
    exit 1
  fi
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT

  case $command in
    create | delete) "$command" && exit ;;
    install) install && exit ;;
    tail) tpu ssh "$name" --worker="$worker" --command="tail -n 100 -F \"\$HOME/$REMOTE_DIR.log\"" && exit ;;
    run | resume) train_to_the_end ;;
  esac
}

train_to_the_end() {
  local restarts=0 status installed=false
  if [[ $command == resume ]]; then
    if $dry_run; then
      tpu describe "$name" --format='value(state)'
      echo "# If it is gone:"
      delete
      create
    elif [[ $(slice_state) != READY ]]; then
      wait_until_ready || exit
    fi
  fi
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
