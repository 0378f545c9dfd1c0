#!/usr/bin/env bash
# What launch/tpu_vm.sh runs on every worker of a TPU pod, in a checkout of this repository:
#     launch/tpu_worker.sh install           Python 3.11, the tested versions and libtpu, in .venv
#     launch/tpu_worker.sh start ARGUMENTS   dlv3p_jax.main in the background, started again whenever it exits with 75 or is killed
#     launch/tpu_worker.sh status            "running", "ended CODE", "interrupted" (a reboot or a kill) or "none"
#     launch/tpu_worker.sh logs              follow its output
#     launch/tpu_worker.sh stop              SIGTERM, and wait
set -euo pipefail
shopt -s inherit_errexit

# "The same command goes on", of dlv3p_jax.main, and being killed. Where that does not help, a training itself ends with
# 70 after some starts.
goes_on() {
    (($1 == 75 || $1 == 134 || $1 == 137 || $1 == 139))
}

# CODE ARGUMENTS…: a start that brought nothing and was not counted: of an evaluation, which saves nothing, or one that
# was killed in its first ten minutes, perhaps before it could be counted. After five in a row, another is of no use.
in_vain() {
    [[ " ${*:2} " == *" --mode=eval "* ]] || (($1 != 75 && SECONDS < 600))
}
cd "$(dirname "$0")/.."
readonly STATE=.run # of the latest run: its arguments, the process that watches over it, its output, its exit code

fail() {
    echo "launch/tpu_worker.sh: $(hostname): $*" >&2
    exit 1
}

alive() {
    [[ -f $STATE/pid ]] && grep -aqs watch_over "/proc/$(<$STATE/pid)/cmdline" # after a reboot, the number is another's
}

install() {
    # The images have Python 3.10, so uv brings its own.
    python3 -m pip install --quiet --user uv
    export PATH="$HOME/.local/bin:$PATH"
    uv venv --quiet --allow-existing --python 3.11 .venv
    uv pip install --quiet --python .venv/bin/python --requirement requirements.txt
    uv pip install --quiet --python .venv/bin/python --editable '.[train,tpu]'
}

start() {
    local arguments
    arguments=$(printf '%q ' "$@")
    if alive; then
        [[ $arguments == "$(<$STATE/arguments)" ]] ||
            fail "another run lives here: $(<$STATE/arguments)(stop it first)"
        echo "$(hostname): it runs already"
        return
    fi
    mkdir -p $STATE
    rm -f $STATE/code
    echo "$arguments" >$STATE/arguments
    nohup setsid bash launch/tpu_worker.sh watch_over "$@" </dev/null >>$STATE/log 2>&1 &
    echo $! >$STATE/pid
    echo "$(hostname): started as process $!"
}

watch_over() {
    local code child='' signalled=false stopping=false vain=0
    trap 'signalled=true; stopping=true; [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true' TERM
    while true; do
        SECONDS=0
        .venv/bin/python -m dlv3p_jax.main "$@" &
        child=$!
        ! $stopping || kill -TERM "$child"
        while true; do # a signal ends our waiting, but not the run
            signalled=false code=0
            wait "$child" || code=$?
            $signalled || break
        done
        if $stopping || ! goes_on "$code"; then break; fi
        if in_vain "$code" "$@"; then vain=$((vain + 1)); else vain=0; fi
        if ((vain == 5)); then
            echo "launch/tpu_worker.sh: $vain starts in a row brought nothing: another will not help; see above why"
            break
        fi
        echo "launch/tpu_worker.sh: exit code $code: starting again"
    done
    echo "launch/tpu_worker.sh: the run ended with exit code $code"
    echo "$code" >$STATE/code
}

status() {
    local now=none
    if alive; then
        now=running
    elif [[ -f $STATE/code ]]; then
        now="ended $(<$STATE/code)"
    elif [[ -f $STATE/pid ]]; then
        now=interrupted
    fi
    echo "$(hostname): $now"
}

stop() {
    alive || return 0
    kill -TERM "$(<$STATE/pid)"
    while alive; do sleep 0.2; done
    status
}

case ${1:-} in
install | start | status | stop | watch_over) "$@" ;;
logs) exec tail -n 100 -F $STATE/log ;;
*) fail "unknown command '${1:-}': install, start, status, logs or stop" ;;
esac
