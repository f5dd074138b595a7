#!/usr/bin/env bash
# Trains on every worker of a Cloud TPU slice: copies a commit of this checkout to the workers,
# installs it there, runs `python -m diffusion_jax.main`, and starts it again after a preemption.
set -euo pipefail

readonly EXIT_PREEMPTED=75 # stopped by a signal, saved, not finished
readonly REMOTE_DIR="diffusion_jax_launch" # in the home directory of each worker

usage() {
  cat <<'EOF'
Usage: launch/tpu_pod.sh --name NAME --zone ZONE --workdir DIR --config FILE [options] [-- ARGS...]

Installs diffusion_jax on every worker of an existing TPU slice, and runs there
    python -m diffusion_jax.main --config=FILE --workdir=DIR ARGS...

Required:
  --name NAME         the TPU slice
  --zone ZONE         its zone, such as us-central2-b
  --workdir DIR       where the run is kept, seen by all workers: gs://... or a shared /folder
  --config FILE       config file, relative to the top of the repository

Options:
  --project PROJECT   Google Cloud project (default: that of gcloud's configuration)
  --ref REF           commit, branch or tag of this checkout to run (default: HEAD);
                      uncommitted changes are not sent
  --max-restarts N    starts again at most N times after exit status 75, which means stopped
                      by a signal, saved and not finished (default: 100)
  --dry-run           print the commands without running them
  --help              show this help

Example:
  launch/tpu_pod.sh --name my-v5e-16 --zone us-west4-a --workdir gs://my-bucket/cifar10 \
      --config configs/cifar10.py -- --config.train.batch_size=256

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
  name="" zone="" workdir="" config="" project="" ref="HEAD" max_restarts=100 dry_run=false
  arguments=()
  while [[ $# -gt 0 ]]; do
    local option=$1 value
    shift
    case $option in
      --) arguments=("$@") && return ;;
      --help | -h) usage && exit 0 ;;
      --dry-run) dry_run=true && continue ;;
      --name | --zone | --workdir | --config | --project | --ref | --max-restarts)
        [[ $# -gt 0 && $1 != -- ]] || fail "$option needs a value; see --help"
        value=$1
        shift
        ;;
      --name=* | --zone=* | --workdir=* | --config=* | --project=* | --ref=* | --max-restarts=*)
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
  [[ $workdir == gs://?* || $workdir == /* ]] ||
    fail "--workdir '$workdir' is not seen by all workers: give gs://... or a shared /folder"
  [[ $max_restarts =~ ^[0-9]+$ ]] ||
    fail "--max-restarts '$max_restarts' is not a whole number of at least 0"
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

tpu() { # tpu ssh|scp ARGS...: on every worker.
  local verb=$1
  shift
  run gcloud compute tpus tpu-vm "$verb" "$@" \
    --zone="$zone" ${project:+"--project=$project"} --worker=all
}

install() {
  local archive=$scratch/$REMOTE_DIR.tar.gz
  run git -C "$root" archive --format=tar.gz --output="$archive" "$ref"
  tpu scp "$archive" "$name:"
  # The TPU images' own Python can be older than the package allows, so uv brings one.
  tpu ssh "$name" --command="set -eu
cd \"\$HOME\"
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
  command=$(printf '%q ' .venv/bin/python -m diffusion_jax.main \
    "--config=$config" "--workdir=$workdir" ${arguments[@]+"${arguments[@]}"})
  tpu ssh "$name" --command="cd \"\$HOME/$REMOTE_DIR\" && exec ${command% }"
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
  install

  local restarts=0 status
  while true; do
    status=0
    train || status=$?
    [[ $status -eq $EXIT_PREEMPTED && $restarts -lt $max_restarts ]] || exit "$status"
    restarts=$((restarts + 1))
    echo "tpu_pod.sh: stopped by a signal; restart $restarts of at most $max_restarts" >&2
  done
}

main "$@"
