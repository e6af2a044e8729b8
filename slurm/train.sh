# One job of any stage: check that everything is in place, train, and before the time limit save and requeue the job.
# The other scripts in this folder set the job's size and source this file with the run's overrides; docs/slurm.md
# describes its behaviour. Variables hold the settings that depend on a cluster or a user:
#
#   SBATCH_ACCOUNT, SBATCH_PARTITION, SBATCH_QOS, SBATCH_TIMELIMIT   variables of sbatch
#   MEGAGPT_PYTHON         the Python that has megagpt (default: .venv/bin/python if it exists, else python3; in a
#                          container always python3)
#   MEGAGPT_CONTAINER      an image to run in: FILE.sif by apptainer, any other by pyxis (srun --container-image)
#   MEGAGPT_LOGS           folder of logs and status files (default: logs)
#   MEGAGPT_MAX_RESTARTS   most restarts of training inside one allocation (default: 20)
#   MEGAGPT_MAX_EPOCHS     most passes over a corpus that the check accepts (default: 4)
#   MEGAGPT_WITHOUT_GPUS   1 allows ranks on CPUs, for a rehearsal; otherwise a rank without a GPU is refused
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root" || exit
. slurm/network.sh
python=${MEGAGPT_PYTHON:-$root/.venv/bin/python}
[[ -n ${MEGAGPT_PYTHON:-} || (-x $python && -z ${MEGAGPT_CONTAINER:-}) ]] || python=python3
logs=${MEGAGPT_LOGS:-logs}/$SLURM_JOB_NAME-$SLURM_JOB_ID
mkdir -p "$logs" || exit
export MEGAGPT_RESTART_COUNT=0

# Slurm's address of the first node, because other nodes may not resolve its name, and a port that depends on the job.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(scontrol show node "$first" --oneliner | grep -o 'NodeAddr=[^ ]*')
[[ $SLURM_NNODES != 1 ]] || address=127.0.0.1 # no other node needs to reach it
torchrun=(
  -m megagpt.parallel.torchrun
  --nnodes="$SLURM_NNODES" --node-rank=%NODE% --nproc-per-node="${SLURM_GPUS_PER_NODE##*:}" # 8 from values such as 8 or h100:8
  --master-addr="${address#*=}" --master-port=$((20000 + SLURM_JOB_ID % 10000))
)

srun=(
  srun --ntasks-per-node=1 --cpu-bind=none --unbuffered --open-mode=append
  --kill-on-bad-exit=1 --wait=60 # if a node fails, the others end at once; if one ends early, within a minute
)
inside=()
case ${MEGAGPT_CONTAINER:-} in
  '') ;;
  *.sif) inside=(apptainer exec --nv --bind "$root" "$MEGAGPT_CONTAINER") ;;
  *) srun+=(--container-image="$MEGAGPT_CONTAINER" --container-mounts="$root:$root" --container-workdir="$root") ;;
esac

# status STATE [REASON]: writes the state of the job as one line of JSON, and replaces the file atomically.
status() {
  printf '{"state": "%s", "reason": "%s", "job": %d, "requeues": %d, "restarts": %d, "time": "%s"}\n' "$1" \
    "${2//[\\\"]/}" "$SLURM_JOB_ID" "${SLURM_RESTART_COUNT:-0}" "$MEGAGPT_RESTART_COUNT" "$(date -Iseconds)" \
    >"$logs/status.new" && mv "$logs/status.new" "$logs/status.json"
  echo "$(date -Iseconds) $1: $2"
}

# finish CODE STATE REASON
finish() {
  status "$2" "$3"
  exit "$1"
}

# Signals, as wishes. Bash handles a signal between two commands and during `wait`.
step='' wish='' limit=$((1 << 40))
read_limit() { # unchanged if Slurm does not answer or has no limit
  local end
  end=$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %e) && end=$(date -d "${end:-none}" +%s 2>/dev/null) && limit=$end
}
ask_to_save() {
  wish=$1
  [[ -z $step ]] || kill -USR1 "$step" 2>/dev/null
  read_limit # it may have been changed
}
ended() { # the ranks have got the signal too, and SIGKILL follows
  if (($(date +%s) + 5 >= limit)); then
    status timeout "the last save was not done in time: have the signal come earlier (sbatch --signal=B:USR1@SECONDS)"
  else
    status cancelled "by scancel, by a job of higher priority, or by the death of a node"
  fi
  [[ -z $step ]] || wait "$step"
  exit $((128 + 15))
}
trap 'ask_to_save requeue' USR1
trap 'ask_to_save stop' INT
trap ended TERM
read_limit

# on_nodes LOG ARGUMENTS...: runs torchrun on every node. Sets `cause`, `code` and `reason` from the launchers' outcomes:
# cause 0 is a permanent failure; the smallest cause explains the others.
on_nodes() {
  local log=$1 outcomes=$logs/outcome name
  shift
  rm -rf "$outcomes" && mkdir "$outcomes"
  # shellcheck disable=SC2016  # the variable is expanded on the node
  "${srun[@]}" --output="$logs/$log-%n.txt" bash -c 'exec "${@//%NODE%/$SLURM_NODEID}"' - \
    "${inside[@]}" "$python" "${torchrun[@]}" --outcome="$outcomes/%NODE%" "$@" &
  step=$!
  [[ -z $wish ]] || kill -USR1 "$step"
  while kill -0 "$step" 2>/dev/null; do wait "$step"; done # a signal to this shell ends `wait` but not the step
  step=''
  read -r cause code reason < <(cat "$outcomes"/* 2>/dev/null | sort -n)
  lost=''
  for ((name = 0; name < SLURM_NNODES; name++)); do
    [[ -s $outcomes/$name ]] || lost="node $name of this job ended without a word${reason:+; $reason}"
  done
  if [[ -n $lost && ${cause:-9} -ge 3 ]]; then cause=3 code=1 reason=$lost; else lost=''; fi
}

# Requeue the job, unless somebody asked for its end.
give_way() {
  [[ $wish != stop ]] || finish 0 stopped "as asked, $1; the same sbatch goes on from the newest checkpoint"
  status requeued "$1"
  trap 'exit 0' TERM
  scontrol requeue "$SLURM_JOB_ID" || finish 75 stopped "Slurm does not requeue this job; the same sbatch goes on"
  sleep 600 & wait $! # Slurm ends this script
}
# Do not requeue here: the job would stop at the same point again and again.
too_early() {
  [[ $wish != stop ]] || give_way "before training began"
  finish 1 failed "the signal to save came before training began: give more time (--time) or a later signal (--signal)"
}

status checking "is everything in place?"
limits=(--max-epochs "${MEGAGPT_MAX_EPOCHS:-4}")
[[ ${MEGAGPT_WITHOUT_GPUS:-} == 1 ]] || limits+=(--need-gpus)
on_nodes check -m megagpt.cli plan --check "${limits[@]}" "$@"
[[ -z $wish ]] || too_early
[[ $code == 0 ]] || grep --text ^PROBLEM "$logs/check-0.txt" # also in the job's own output
[[ $code == 0 ]] || finish 1 failed "the check found problems; $logs/check-0.txt lists them${lost:+ ($lost)}"

wordless=0
while :; do
  status running "since $(date -Iseconds)"
  on_nodes train -m megagpt "$@"
  case $cause-$code in
    *-0) finish 0 finished "the run reached its last token" ;;
    0-*) finish "$code" failed "$reason" ;;
    *-75) give_way saved ;;
  esac
  [[ -z $wish || $MEGAGPT_RESTART_COUNT != 0 || (-z $lost && $code != 138) ]] || too_early # the signal ended ranks that were starting
  [[ -z $wish ]] || give_way "not saved ($reason)"
  [[ -n $lost ]] && wordless=$((wordless + 1)) || wordless=0
  ((wordless < 3)) || give_way "$reason" # it may run on other nodes
  ((MEGAGPT_RESTART_COUNT < ${MEGAGPT_MAX_RESTARTS:-20})) || finish 1 failed "$reason, after MEGAGPT_MAX_RESTARTS restarts"
  MEGAGPT_RESTART_COUNT=$((MEGAGPT_RESTART_COUNT + 1))
  status restarting "$reason"
  sleep 10 & wait $! # gives processes of the last attempt time to end
  [[ -z $wish ]] || give_way "between two attempts"
done
