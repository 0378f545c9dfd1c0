#!/usr/bin/env bash
# One run on a Cloud TPU VM pod (or a single TPU VM): launch/tpu_vm.sh COMMAND --name=NAME --zone=ZONE … [--dry_run]
#
#   plan     --type=v4-32 -- --config=…        whether the run fits and what it takes: dlv3p_jax.plan, here, without a TPU
#   create   --type=v4-32 [--version=IMAGE] [--spot]   ask for the TPU, as a queued resource, and wait until it is there
#   setup                                      copy the repository as committed to all workers, and install it there
#   data     --from=gs://BUCKET/data           copy prepared data sets to the local disk of every worker
#   run      -- --config=… --workdir=…         start dlv3p_jax.main on all workers, in the background
#   watch    …                                 wait for the end of the run. Where the TPU was preempted, get another and go
#                                              on: takes what create, data (if --from is given) and run take
#   status                                     the TPU's state, and what every worker does
#   logs     [--worker=0]                      follow the output
#   stop                                       end the run on all workers
#   fetch    --workdir=… --output=FOLDER       copy config, reports, events and best checkpoint here
#   delete                                     give the TPU back, with all that is on its disks
#
# NAME, ZONE and PROJECT may come from TPU_NAME, TPU_ZONE and TPU_PROJECT. --dry_run prints the commands, one a line, and
# runs none of them. See docs/launch.md.
set -euo pipefail
shopt -s inherit_errexit

readonly POLL_SECONDS=${TPU_POLL_SECONDS:-30}
readonly HOME_FOLDER=dlv3p_jax # of the repository, on the workers

fail() {
    echo "launch/tpu_vm.sh: $*" >&2
    exit 1
}

say() {
    echo "launch/tpu_vm.sh: $*" >&2
}

# Prints or runs a command.
do_() {
    if $dry_run; then
        quoted "$@"
    else
        "$@"
    fi
}

quoted() {
    local word line=''
    for word in "$@"; do
        [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word=${word@Q}
        line+="$word "
    done
    echo "${line% }"
}

on_workers() { # WORKER COMMAND: runs it there, in the repository
    do_ gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" "--worker=$1" "--command=cd $HOME_FOLDER && $2"
}

state() {
    do_ gcloud compute tpus queued-resources describe "$name" "${where[@]}" '--format=value(state.state)'
}

plan() {
    local word config=()
    need type
    for word in "${arguments[@]}"; do # of dlv3p_jax.main's flags, those that plan has too
        [[ $word != --config* ]] || config+=("$word")
    done
    cd "$repository"
    do_ "${PYTHON:-.venv/bin/python}" -m dlv3p_jax.plan "--topology=$type" "${config[@]}"
}

create() {
    need type
    local image now last='' request
    image=${version:-$(image_of "$type")}
    request=("--node-id=$name" "--accelerator-type=$type" "--runtime-version=$image")
    ! $spot || request+=(--spot)
    do_ gcloud compute tpus queued-resources create "$name" "${where[@]}" "${request[@]}"
    if $dry_run; then
        state
        return
    fi
    while true; do
        now=$(state)
        [[ $now == "$last" ]] || say "$name is $now"
        last=$now
        case $now in
        ACTIVE) return ;;
        FAILED | SUSPENDED | SUSPENDING | DELETING) fail "$name is $now: delete it, and create it again" ;;
        esac
        sleep "$POLL_SECONDS"
    done
}

# What Google recommends for JAX: https://cloud.google.com/tpu/docs/runtimes
image_of() {
    case $1 in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v[234]-*) echo tpu-ubuntu2204-base ;;
    *) fail "which software a $1 takes is not known here: give --version=IMAGE" ;;
    esac
}

setup() {
    local archive=${TMPDIR:-/tmp}/dlv3p_jax-$name.tar.gz
    git -C "$repository" diff --quiet HEAD || say 'changes that are not committed stay here'
    do_ git -C "$repository" archive --format=tar.gz "--output=$archive" HEAD
    do_ gcloud compute tpus tpu-vm scp "$archive" "$name:$HOME_FOLDER.tar.gz" "${where[@]}" --worker=all
    do_ gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all \
        "--command=mkdir -p $HOME_FOLDER && tar -xzf $HOME_FOLDER.tar.gz -C $HOME_FOLDER"
    on_workers all 'launch/tpu_worker.sh install'
    do_ rm "$archive"
}

data() {
    need from
    on_workers all "mkdir -p data && gcloud storage rsync $(quoted "$from") data --recursive"
}

run() {
    on_workers all "launch/tpu_worker.sh start $(quoted "${arguments[@]}")"
}

watch() {
    local now codes
    if $dry_run; then
        echo '# every poll:'
        state
        on_workers all 'launch/tpu_worker.sh status'
        echo '# where it was preempted:'
        again
        return
    fi
    while true; do
        now=$(state) || now=unknown
        case $now in
        ACTIVE) ;;
        SUSPENDED)
            say "$name was preempted"
            again
            ;;
        FAILED) fail "$name is FAILED: delete it, and create it again" ;;
        *) say "$name is $now" ;;
        esac
        [[ $now != ACTIVE ]] || now=$(on_workers all 'launch/tpu_worker.sh status') || now=unreachable
        case $now in
        *': interrupted'*) run || say 'not all workers could be reached; trying again' ;; # one of them was restarted
        *': running'*) ;;
        *': ended'*)
            say "$now"
            codes=$(grep -o 'ended [0-9]*' <<<"$now" | cut -d ' ' -f 2 | sort -n)
            exit "${codes##*$'\n'}"
            ;;
        *': none'*) fail "no run was started on $name" ;;
        esac
        sleep "$POLL_SECONDS"
    done
}

# A queued resource that was preempted never comes back: it has to be deleted and asked for again.
again() {
    delete
    create
    setup
    [[ -z $from ]] || data
    run
}

status() {
    state
    on_workers all 'launch/tpu_worker.sh status'
}

logs() {
    on_workers "$worker" 'launch/tpu_worker.sh logs'
}

stop() {
    on_workers all 'launch/tpu_worker.sh stop'
}

fetch() {
    need workdir
    need output
    if [[ $workdir == gs://* ]]; then
        do_ mkdir -p "$output"
        do_ gcloud storage rsync "$workdir" "$output" '--exclude=^checkpoints/latest/.*' --recursive
    else # of the first worker, as scp cannot leave a folder out
        [[ $workdir == /* ]] || workdir=$HOME_FOLDER/$workdir
        do_ gcloud compute tpus tpu-vm scp "$name:$workdir" "$output" "${where[@]}" --worker=0 --recurse
    fi
}

delete() {
    do_ gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
}

need() {
    [[ -n ${!1} ]] || fail "$action needs --$1=…"
}

action=${1:-}
case $action in
plan | create | setup | data | run | watch | status | logs | stop | fetch | delete) shift ;;
*) fail "unknown command '$action'; it is one of plan, create, setup, data, run, watch, status, logs, stop, fetch, delete" ;;
esac
name=${TPU_NAME:-} zone=${TPU_ZONE:-} project=${TPU_PROJECT:-}
type='' version='' spot=false from='' worker=0 workdir='' output='' dry_run=false arguments=()
while (($#)); do
    case $1 in
    --name=* | --zone=* | --project=* | --type=* | --version=* | --from=* | --worker=* | --workdir=* | --output=*)
        flag=${1%%=*}
        printf -v "${flag#--}" %s "${1#*=}"
        ;;
    --spot) spot=true ;;
    --dry_run) dry_run=true ;;
    --)
        shift
        arguments=("$@")
        break
        ;;
    *) fail "unknown argument '$1'; flags are written --name=value, and those of dlv3p_jax.main come after \"--\"" ;;
    esac
    shift
done
[[ $action == plan ]] || need name
[[ $action == plan ]] || need zone
[[ $action != watch ]] || need type
[[ -z $from || $from == gs://* ]] || fail "--from=$from: give a folder of a bucket, gs://BUCKET/FOLDER"
of_main=arguments
[[ $action != plan ]] || of_main="--config… arguments"
[[ $action != plan && $action != run && $action != watch ]] || ((${#arguments[@]})) ||
    fail "$action takes the $of_main of dlv3p_jax.main after \"--\""
where=("--zone=$zone")
[[ -z $project ]] || where+=("--project=$project")
repository=$(cd "$(dirname "$0")/.." && pwd)
"$action"
