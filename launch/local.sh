#!/usr/bin/env bash
# Runs `python -m diffusion_jax.main` in several joined processes on this machine, and starts
# them all again when one of them dies.
set -euo pipefail

readonly EXIT_WRONG_INPUT=2 EXIT_STOPPED=75

usage() {
  cat <<'EOT'
Usage: launch/local.sh [options] N [ARGS...]

Runs python -m diffusion_jax.main ARGS... in N processes that are joined over 127.0.0.1. The cores
and the NVIDIA GPUs of the machine are divided among them, so N must divide the number of GPUs.

Options, before N:
  --max-restarts M    starts all again at most M times (default: 3)
  --grace S           once a process has failed, leaves S seconds to the others to end by
                      themselves before they are killed (default: 60)
  --log-dir DIR       appends what process I prints to DIR/process-I.log; without it every line
                      is shown here, after its process's number
  --dry-run           print the commands without running them
  --help              show this help

Environment:
  PYTHON                 the interpreter (default: python)
  JAX_NUM_CPU_DEVICES    CPU devices of each process (default: its share of the cores)
  CUDA_VISIBLE_DEVICES   the GPUs to divide (default: all that nvidia-smi lists)
  JAX_PLATFORMS=cpu      divides no GPUs

Example:
  launch/local.sh 2 --config=configs/digits.py --config.mesh.data=-1

All are started again, and continue the run, after any exit status but 0 and 2 (wrong input).
SIGINT and SIGTERM are passed on to all: they save and stop, and nothing is started again.
Exit status: that of the process that failed first; 75 after a signal; 2 for wrong arguments.
EOT
}

say() {
  echo "local.sh: $1" >&2 || true
}

fail() { # fail MESSAGE: wrong arguments.
  say "$1"
  exit "$EXIT_WRONG_INPUT"
}

parse_arguments() {
  max_restarts=3 grace=60 log_dir="" dry_run=false
  while [[ ${1-} == -* ]]; do
    local option=$1 value
    shift
    case $option in
      --help | -h) usage && exit 0 ;;
      --dry-run) dry_run=true && continue ;;
      --max-restarts | --grace | --log-dir)
        [[ $# -gt 0 ]] || fail "$option needs a value; see --help"
        value=$1
        shift
        ;;
      --max-restarts=* | --grace=* | --log-dir=*)
        value=${option#*=}
        option=${option%%=*}
        ;;
      *) fail "unknown option '$option'; see --help (arguments of the command come after N)" ;;
    esac
    [[ -n $value ]] || fail "$option is empty; see --help"
    option=${option#--}
    printf -v "${option//-/_}" %s "$value"
  done
  [[ $# -gt 0 ]] || fail "the number of processes is missing; see --help"
  [[ $1 =~ ^[1-9][0-9]{0,3}$ ]] ||
    fail "the number of processes is '$1'; it must be a whole number from 1 to 9999"
  count=$1
  shift
  arguments=("$@")
  for option in "$@"; do
    case $option in
      --dry-run | --max-restarts | --max-restarts=* | --grace | --grace=* | --log-dir | --log-dir=*)
        fail "'$option' comes before N, the number of processes; see --help"
        ;;
    esac
  done
  for option in max_restarts grace; do
    [[ ${!option} =~ ^(0|[1-9][0-9]*)$ ]] ||
      fail "--${option/_/-} '${!option}' is not a whole number of at least 0"
  done
}

divide_machine() { # Sets cores, a process's CPU devices, and gpus, all of them (none: empty).
  cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
  cores=$((cores / count > 1 ? cores / count : 1))
  gpus=()
  [[ ${JAX_PLATFORMS-} != cpu ]] || return 0
  if [[ -n ${CUDA_VISIBLE_DEVICES-} ]]; then
    IFS=, read -r -a gpus <<<"$CUDA_VISIBLE_DEVICES"
  elif [[ -z ${CUDA_VISIBLE_DEVICES+set} ]] && command -v nvidia-smi >/dev/null; then
    local number
    while read -r number; do
      [[ -z $number ]] || gpus+=("$number")
    done < <(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null || true)
  fi
  ((${#gpus[@]} % count == 0)) ||
    fail "$count processes cannot divide ${#gpus[@]} GPUs evenly; set CUDA_VISIBLE_DEVICES or N"
}

free_port() {
  "$python" -c 'import socket
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    print(free.getsockname()[1])'
}

command_of() { # command_of I: sets words, the command of process I.
  local share=$((${#gpus[@]} / count)) own
  words=(env "JAX_COORDINATOR_ADDRESS=127.0.0.1:$port"
    "JAX_COORDINATOR_BIND_ADDRESS=127.0.0.1:$port"
    "JAX_NUM_PROCESSES=$count" "JAX_PROCESS_ID=$1"
    "JAX_NUM_CPU_DEVICES=${JAX_NUM_CPU_DEVICES:-$cores}")
  if ((share > 0)); then
    own=("${gpus[@]:$(($1 * share)):$share}")
    words+=("CUDA_VISIBLE_DEVICES=$(IFS=, && echo "${own[*]}")")
  fi
  # The longer form of "${arguments[@]}" is for macOS's bash, where an empty array is unbound.
  words+=("$python" -m diffusion_jax.main ${arguments[@]+"${arguments[@]}"})
}

prefix() { # prefix I: shows what is read, each line after the process's number.
  # It ends with the process that it reads from, which must not fail if there is no reader any more.
  trap '' HUP INT PIPE TERM
  local line
  while IFS= read -r line || [[ -n $line ]]; do
    printf '[%s] %s\n' "$1" "$line" 2>/dev/null || true
  done
}

start() { # start I: starts process I.
  local words
  command_of "$1"
  # Each gets its own process group, so that a Ctrl-C reaches it once, through this script.
  set -m
  if [[ -n $log_dir ]]; then
    "${words[@]}" </dev/null >>"$log_dir/process-$1.log" 2>&1 &
  else
    "${words[@]}" </dev/null > >(prefix "$1") 2> >(prefix "$1" >&2) &
  fi
  pids[$1]=$!
  set +m
  say "process $1 has pid ${pids[$1]}"
}

signal_all() { # signal_all NAME: sends a signal to all that still run.
  local pid
  for pid in ${pids[@]+"${pids[@]}"}; do
    kill -s "$1" "$pid" 2>/dev/null || true
  done
}

stop() { # stop NAME: handles a signal to this script.
  stopping=$1
  signal_all "$1"
}

collect() { # Takes note of the processes that have ended: removes their pids, and sets status.
  local i ended
  for i in "${!pids[@]}"; do
    ! kill -0 "${pids[$i]}" 2>/dev/null || continue
    ended=0
    wait "${pids[$i]}" 2>/dev/null || ended=$?
    unset "pids[$i]"
    ((ended != 0)) || continue
    if ((status == 0)); then
      status=$ended
      deadline=$((SECONDS + grace))
    elif ((ended == EXIT_WRONG_INPUT)); then
      status=$ended
    fi
  done
}

run_all() { # Runs the processes once; sets status to that of the first to fail, and 0 if none does.
  local i port deadline=0
  port=$(free_port)
  pids=() status=0
  for ((i = 0; i < count; i++)); do
    start "$i"
  done
  [[ -z $stopping ]] || signal_all "$stopping" # It came while they were being started.
  while ((${#pids[@]} > 0)); do
    collect
    if ((status != 0 && SECONDS > deadline && ${#pids[@]} > 0)); then
      say "still running $grace seconds after another failed: process ${!pids[*]}; killing"
      signal_all KILL
      deadline=$((SECONDS + grace))
    fi
    sleep 0.1 || true # A Ctrl-C ends it too.
  done
}

main() {
  parse_arguments "$@"
  python=${PYTHON:-python}
  command -v "$python" >/dev/null || fail "there is no interpreter '$python'; set PYTHON"
  divide_machine
  if $dry_run; then
    local i port words
    port=$(free_port)
    for ((i = 0; i < count; i++)); do
      command_of "$i"
      printf '%q ' "${words[@]}"
      echo
    done
    exit 0
  fi
  [[ -z $log_dir ]] || mkdir -p "$log_dir" || fail "--log-dir '$log_dir' cannot be made"

  local restarts=0 stopping="" status pids
  trap 'stop INT' INT
  trap 'stop TERM' HUP TERM
  trap : PIPE # There may be no reader of the last messages.
  while true; do
    run_all
    if [[ -n $stopping ]]; then
      # A signal that comes before Python handles it ends the process as it ends any.
      case $status in 130 | 143) status=$EXIT_STOPPED ;; esac
      exit "$status"
    fi
    if ((status == 0 || status == EXIT_WRONG_INPUT || restarts >= max_restarts)); then
      exit "$status"
    fi
    restarts=$((restarts + 1))
    say "status $status; restart $restarts of at most $max_restarts"
  done
}

main "$@"
