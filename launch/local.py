"""Several processes of one run on this machine.

    python launch/local.py --processes=2 --devices=2 -- --config=… --workdir=…

What follows `--` goes to each `python -m dlv3p_jax.main`; lines of output begin with the process that wrote them. When
one process dies, the others are ended and a message says which it was. SIGINT, SIGTERM and SIGHUP are passed on to all;
a second one kills. Where processes ended with 75, "start me again", or were killed, and none told an error, all are
started again, unless a signal was for us. Else the exit code is that of the first process to fail, 128 + the number of
the signal where one killed it. A training that does not get on says so itself, with 70; an evaluation, and what is
killed in its first ten minutes, is started five times in a row at most.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

from absl import app, flags

_PROCESSES = flags.DEFINE_integer("processes", 2, "How many processes.", lower_bound=1)
_DEVICES = flags.DEFINE_integer(
    "devices", None, "Virtual CPU devices of each process; without it, process I computes on GPU I.", lower_bound=1
)
_GRACE = flags.DEFINE_float(
    "grace", 10, "Seconds that the other processes have, after one died, between SIGTERM and SIGKILL.", lower_bound=0
)
_POLL_SECONDS = 0.1
_RESTART = 75  # of dlv3p_jax.main
_VAIN, _EARLY_SECONDS = 5, 600
_OWN_END_SECONDS = 2  # an error that all processes make is told by all of them, which takes a moment


def main(argv: list[str]) -> None:
    processes, received = [], []
    _pass_signals_on(processes, received)
    vain = 0
    while True:
        begin = time.monotonic()
        code, go_on = _run(argv[1:], processes)
        if not go_on or received:
            sys.exit(code)
        vain = vain + 1 if in_vain(code, time.monotonic() - begin, argv) else 0
        if vain == _VAIN:
            _say(f"exit code {code}: {vain} starts in a row brought nothing: another will not help; see above why")
            sys.exit(code)
        _say(f"exit code {code}: starting again")


def in_vain(code: int, seconds: float, arguments: list[str]) -> bool:
    """Whether a start brought nothing and was not counted (`dlv3p_jax.runtime.starts`).

    That is one of an evaluation, which saves nothing, and one that was killed early, maybe before it could be counted.
    """
    return "--mode=eval" in arguments or (code != _RESTART and seconds < _EARLY_SECONDS)


def _run(arguments: list[str], processes: list[subprocess.Popen]) -> tuple[int, bool]:
    """Starts all processes, which it leaves in `processes`, and waits for their end.

    Returns:
        The exit code, and whether the same command goes on.
    """
    repository = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    port = _free_port()
    processes.clear()
    for index in range(_PROCESSES.value):
        environment = os.environ | environment_of(index, _PROCESSES.value, port, _DEVICES.value, os.environ)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [repository, os.environ.get("PYTHONPATH")]))
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "dlv3p_jax.main", *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a terminal's Ctrl-C reaches them once, through us
            )
        )
    threads = [threading.Thread(target=_copy_lines, args=pair, daemon=True) for pair in enumerate(processes)]
    for thread in threads:
        thread.start()
    _say(f"{len(processes)} processes, {', '.join(str(process.pid) for process in processes)}, meet at port {port}")
    codes = _watch(processes)
    for thread in threads:
        thread.join(timeout=5)
    return exit_code(codes)


def environment_of(index: int, count: int, port: int, devices: int | None, environment) -> dict[str, str]:
    """What process `index` of `count` finds in its environment beside ours; see `dlv3p_jax.runtime.process_flags`."""
    added = {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": str(count),
        "JAX_PROCESS_ID": str(index),
        "PYTHONUNBUFFERED": "1",
    }
    if devices is None:
        return added | {"JAX_LOCAL_DEVICE_IDS": str(index)}
    other = [flag for flag in environment.get("XLA_FLAGS", "").split() if "host_platform_device_count" not in flag]
    flags_ = [*other, f"--xla_force_host_platform_device_count={devices}"]
    return added | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags_)}


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def _say(message: str) -> None:
    print(f"launch/local: {message}", file=sys.stderr, flush=True)


def _copy_lines(index: int, process: subprocess.Popen) -> None:
    for line in process.stdout:
        text = f"[{index}] {line.decode(errors='replace').rstrip()}\n"
        sys.stdout.write(text)  # in one piece, so that lines of two processes do not mix
        sys.stdout.flush()


def _pass_signals_on(processes: list[subprocess.Popen], received: list[int]) -> None:
    def pass_on(number, _):
        received.append(number)
        for process in processes:
            if process.poll() is None:
                process.send_signal(number if len(received) == 1 else signal.SIGKILL)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, pass_on)


def _watch(processes: list[subprocess.Popen]) -> list[int]:
    """Waits until all have ended, and ends the others when one fails; how they ended, the first failure first."""
    while True:
        codes = [process.poll() for process in processes]
        failed = [index for index, code in enumerate(codes) if code]
        if failed:
            break
        if None not in codes:
            return [0]
        time.sleep(_POLL_SECONDS)
    first = failed[0]
    for index in failed:
        _say(f"process {index} of {len(processes)} (pid {processes[index].pid}) {_how_it_ended(codes[index])}")
    for number, seconds in ((None, _OWN_END_SECONDS), (signal.SIGTERM, _GRACE.value), (signal.SIGKILL, 10)):
        alive = [index for index, process in enumerate(processes) if process.poll() is None]
        if not alive:
            break
        if number is not None:
            _say(f"so {number.name} for {', '.join(f'process {index}' for index in alive)}")
        for index in alive:
            if number is not None:
                processes[index].send_signal(number)
        _wait(processes, seconds)
    others = [process.poll() for index, process in enumerate(processes) if index != first]
    return [codes[first], *(code for code in others if code is not None)]


def _wait(processes: list[subprocess.Popen], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)


def _how_it_ended(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def exit_code(codes: list[int]) -> tuple[int, bool]:
    """The exit code for processes that ended with `codes` (-N: by signal N), and whether the same command goes on."""
    errors = [code for code in codes if code > 0 and code != _RESTART]
    failed = [code for code in codes if code != 0]
    if errors or not failed:
        return (errors or [0])[0], False
    if _RESTART in failed or -signal.SIGTERM in failed:  # which kills in the first second, with nothing to lose
        return _RESTART, True
    return 128 - failed[0], True


if __name__ == "__main__":
    app.run(main)
