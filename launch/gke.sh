#!/usr/bin/env bash
# Trains on Google Kubernetes Engine: fills in launch/gke_jobset.yaml and applies it with kubectl.
set -euo pipefail

usage() {
  cat <<'EOT'
Usage: launch/gke.sh --name NAME --image IMAGE --claim CLAIM
           (--topology SLICE | --accelerator TYPE --hosts N) [options] -- ARGS...

Runs python -m diffusion_jax.main ARGS... on every host of a TPU slice or on N nodes with GPUs, as a
JobSet that starts all pods again when one fails, but not after exit status 2 (wrong input).

Required:
  --name NAME            the JobSet's name
  --image IMAGE          image of a container with diffusion_jax[tpu] or diffusion_jax[cuda]
  --claim CLAIM          persistent volume claim that all pods can write to (ReadWriteMany), mounted
                         at /mnt/runs: --workdir must be below it
  --topology SLICE       of TPUs: such as v5e:4x4, v5e-16 or v5litepod-16 (one slice), as many hosts as it has
  --accelerator TYPE     label of nodes with GPUs, such as nvidia-h100-80gb. With a --topology AxB[xC] alone:
                         tpu-v4-podslice, tpu-v5-lite-podslice, tpu-v5p-slice or tpu-v6e-slice
  --hosts N              of GPUs: how many nodes

Options:
  --chips N              TPU chips or GPUs of a host (default: 4 TPU chips, or 1 of a slice of 1; 8 GPUs)
  --service-account S    Kubernetes service account, for access to a bucket (default: default)
  --max-restarts N       starts all pods again at most N times (default: 100)
  --namespace NAMESPACE  Kubernetes namespace (default: kubectl's)
  --dry-run              print the YAML without applying it
  --help                 show this help

Example:
  launch/gke.sh --name cifar10 --image us-docker.pkg.dev/p/r/diffusion_jax --claim runs \
      --topology v6e:4x4 -- --config=configs/cifar10.py --workdir=/mnt/runs/cifar10

The cluster needs JobSet 0.6 or newer. Logs: kubectl logs --follow --prefix
--selector jobset.sigs.k8s.io/jobset-name=NAME; to stop and save: kubectl delete jobset NAME.
Exit status: that of kubectl; 2 for wrong arguments.
EOT
}

fail() { # fail MESSAGE: wrong arguments.
  echo "gke.sh: $1" >&2
  exit 2
}

readonly OPTIONS=" name image claim accelerator topology hosts chips service-account max-restarts namespace "

parse_arguments() {
  # shellcheck disable=SC2034 # Some are only read by name.
  name="" image="" claim="" accelerator="" topology="" hosts="" chips=""
  # shellcheck disable=SC2034
  service_account=default max_restarts=100 namespace="" dry_run=false arguments=()
  while [[ $# -gt 0 ]]; do
    local option=$1 value="" given=false
    shift
    case $option in
      --) arguments=("$@") && break ;;
      --help | -h) usage && exit 0 ;;
      --dry-run) dry_run=true && continue ;;
      --*=*) given=true value=${option#*=} option=${option%%=*} ;;
    esac
    [[ $option == --* && $OPTIONS == *" ${option#--} "* ]] ||
      fail "unknown argument '$option'; see --help (arguments of the command come after --)"
    if ! $given; then
      [[ $# -gt 0 && $1 != -- ]] || fail "$option needs a value; see --help"
      value=$1
      shift
    fi
    [[ -n $value ]] || fail "$option is empty; see --help"
    option=${option#--}
    printf -v "${option//-/_}" %s "$value"
  done
}

check_arguments() {
  local option
  [[ ! $topology =~ ^[A-Za-z] ]] || name_slice
  for option in name image claim accelerator; do
    [[ -n ${!option} ]] || fail "--$option is missing; see --help"
  done
  for option in name claim service_account accelerator; do
    [[ ${!option} =~ ^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$ ]] ||
      fail "--${option/_/-} '${!option}' is not a name in Kubernetes: a-z, 0-9, '-' and '.'"
  done
  [[ $image =~ ^[A-Za-z0-9._/:@-]+$ ]] || fail "--image '$image' is not the name of an image"
  case $accelerator in
    tpu-v4-podslice | tpu-v5-lite-podslice | tpu-v5p-slice | tpu-v6e-slice) check_tpu ;;
    tpu*) fail "--accelerator '$accelerator' is not one of the TPUs that --help names" ;;
    *) check_gpu ;;
  esac
  for option in chips hosts; do
    [[ ${!option} =~ ^[1-9][0-9]*$ ]] ||
      fail "--$option '${!option}' is not a whole number of at least 1"
  done
  [[ $max_restarts =~ ^(0|[1-9][0-9]*)$ ]] ||
    fail "--max-restarts '$max_restarts' is not a whole number of at least 0"
  [[ ${#arguments[@]} -gt 0 ]] || fail "the arguments of the command are missing after --; see --help"
}

name_slice() { # Makes topology a shape, and sets accelerator, by the slice's name.
  local found given=$accelerator
  found=$(find_slice "$topology") || fail "--topology $found"
  case $found in
    v4*) accelerator=tpu-v4-podslice ;;
    v5e*) accelerator=tpu-v5-lite-podslice ;;
    v5p*) accelerator=tpu-v5p-slice ;;
    v6e*) accelerator=tpu-v6e-slice ;;
  esac
  [[ -z $given || $given == "$accelerator" ]] ||
    fail "--topology '$topology' is of $accelerator, but --accelerator is '$given'"
  found=${found#* } topology=${found% *}
}

check_tpu() { # Sets kind, chips and, from the topology, hosts.
  kind=tpu
  [[ -z $hosts ]] || fail "--hosts is for GPUs; a TPU slice has the hosts of its --topology"
  [[ $topology =~ ^[1-9][0-9]*x[1-9][0-9]*(x[1-9][0-9]*)?$ ]] ||
    fail "--topology '$topology' is not one of a TPU slice, such as v5e:4x4 or 2x2x4"
  local all=$((${topology//x/*}))
  chips=${chips:-$((all < 4 ? all : 4))}
  if [[ ! $chips =~ ^[1-9][0-9]*$ ]] || ((all % chips)); then
    fail "--chips '$chips': a topology of $topology has $all chips, which must be a multiple of it"
  fi
  hosts=$((all / chips))
}

check_gpu() {
  kind=gpu chips=${chips:-8}
  [[ -z $topology ]] || fail "--topology is for TPUs; for '$accelerator' say --hosts"
  [[ -n $hosts ]] || fail "--hosts is missing; see --help"
}

json_strings() { # Prints its arguments as a list of JSON strings, which are valid YAML.
  local argument list=""
  for argument in "$@"; do
    [[ ! $argument =~ [[:cntrl:]] ]] || fail "argument '${argument//[[:cntrl:]]/ }' has a control character"
    argument=${argument//\\/\\\\}
    argument=${argument//\"/\\\"}
    argument=${argument//\$(/\$\$(} # Kubernetes would take $(...) for a variable.
    list+=", \"$argument\""
  done
  printf '[%s]' "${list:2}"
}

render() { # Prints the JobSet of this kind with all values filled in.
  local text key values mark
  text=$(awk -v kind="# $kind" '
    /^---$/ { if (found) exit; text = ""; next }
    { text = text $0 "\n" }
    index($0, kind) { found = 1 }
    END { printf "%s", text }' "$root/launch/gke_jobset.yaml")
  values=$(json_strings "${arguments[@]}") || exit
  for key in name accelerator topology hosts chips image claim service_account max_restarts; do
    mark="\${$(tr '[:lower:]' '[:upper:]' <<<"$key")}"
    text=${text//"$mark"/"${!key}"}
  done
  mark="\${ARGS}"
  printf '%s\n' "${text//"$mark"/"$values"}"
}

main() {
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  # shellcheck source=/dev/null
  source "$root/launch/slices.sh"
  parse_arguments "$@"
  check_arguments
  local yaml
  yaml=$(render) || exit
  if $dry_run; then
    printf '%s\n' "$yaml"
    exit 0
  fi
  if ! command -v kubectl >/dev/null; then
    echo "gke.sh: kubectl is not installed" >&2
    exit 1
  fi
  kubectl apply ${namespace:+"--namespace=$namespace"} --filename=- <<<"$yaml"
}

main "$@"
