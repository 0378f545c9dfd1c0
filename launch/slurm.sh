#!/usr/bin/env bash
# One run on a SLURM cluster, a process a GPU. From the repository, whose .venv has '.[train,gpu]' and which all nodes see:
#     sbatch launch/slurm.sh --config=configs/cityscapes_r50.py --config.data_dir=/shared/data --workdir=/shared/run
# Options of sbatch before the script change what is below: sbatch --nodes=2 --partition=NAME launch/slurm.sh …
# PYTHON=FILE sbatch … takes another Python. With --dry_run first, it prints what it would run. See docs/launch.md.
#SBATCH --job-name=dlv3p_jax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
# The last one: this script (B:) hears five minutes before the time is over. SIGTERM is what scancel sends.
set -euo pipefail

# "The same command goes on", of dlv3p_jax.main; killed (137, 134, 139) is what a process was that ended the others with
# 75, as srun gives the highest. Where that does not help, a training itself ends with 70 after some starts.
goes_on() {
    (($1 == 75 || $1 == 134 || $1 == 137 || $1 == 139))
}

# CODE ARGUMENTS…: a start that brought nothing and was not counted: of an evaluation, which saves nothing, or one that
# was killed in its first ten minutes, perhaps before it could be counted.
in_vain() {
    [[ " ${*:2} " == *" --mode=eval "* ]] || (($1 != 75 && SECONDS < 600))
}

fail() {
    echo "launch/slurm.sh: $*" >&2
    exit 1
}

dry_run=false
if [[ ${1:-} == --dry_run ]]; then
    dry_run=true
    shift
fi
[[ -n ${SLURM_JOB_ID:-} ]] || fail "is to be started by SLURM: sbatch launch/slurm.sh --config=… --workdir=…"
cd "${SLURM_SUBMIT_DIR:-.}" # SLURM runs a copy of this file, from a folder of its own
[[ -f dlv3p_jax/main.py ]] || fail "$PWD is not the repository: run sbatch there, or give it --chdir"
python=${PYTHON:-.venv/bin/python}
command -v "$python" >/dev/null || fail "there is no $python: make it (docs/launch.md), or set PYTHON"
tasks=${SLURM_NTASKS_PER_NODE:-unset} gpus=${SLURM_GPUS_ON_NODE:-none}
[[ $tasks == "$gpus" ]] ||
    fail "--ntasks-per-node is $tasks, but this node gives $gpus GPUs: --ntasks-per-node and --gpus-per-node have to agree"

# Every process has to see all GPUs of its node: JAX takes the one of its SLURM_LOCALID, so nothing may bind GPUs to
# tasks. One process that ends must not kill those that still save (--kill-on-bad-exit=0); what hangs is ended (--wait).
command=(srun --gpu-bind=none --kill-on-bad-exit=0 --wait=300 --label)
[[ -z ${SLURM_CPUS_PER_TASK:-} ]] || command+=("--cpus-per-task=$SLURM_CPUS_PER_TASK") # srun does not inherit it
command+=("$python" -m dlv3p_jax.main "$@")

if $dry_run; then
    printf '%q ' "${command[@]}"
    echo
    exit
fi
echo "launch/slurm.sh: job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), on ${SLURM_JOB_NODELIST:-?}"

# Traps run while this script waits, not while a command runs in front of it.
cancelled=false
trap 'cancelled=true' TERM # and this script outlives the processes that save
trap 'echo "launch/slurm.sh: the time is nearly over: SIGTERM to the processes"; scancel --signal=TERM "$SLURM_JOB_ID"' USR1
"${command[@]}" &
readonly processes=$!
while kill -0 "$processes" 2>/dev/null; do
    wait "$processes" || true # a trap ends it early
done
code=0
wait "$processes" || code=$?

if goes_on "$code"; then
    # Who cancels a job, or has SLURM preempt it, does not want it back from here: SLURM requeues what it preempts.
    state=$(squeue --noheader --format=%T --job="$SLURM_JOB_ID" 2>/dev/null || true)
    if $cancelled || [[ ${state:-RUNNING} != RUNNING ]]; then
        echo "launch/slurm.sh: exit code $code: saved, and cancelled (${state:-SIGTERM}); the same sbatch command goes on"
    elif in_vain "$code" "$@" && ((${SLURM_RESTART_COUNT:-0} >= 4)); then
        echo "launch/slurm.sh: exit code $code, at start $((SLURM_RESTART_COUNT + 1)): another will not help; see above why"
    else
        echo "launch/slurm.sh: exit code $code: requeue job $SLURM_JOB_ID, which goes on"
        scontrol requeue "$SLURM_JOB_ID"
    fi
fi
exit "$code"
