"""New processes of Python as forks of one that has imported TensorFlow, which takes most of a command's start.

`install` has `subprocess` do so, and tests start commands as a user does. A fork is as good as a new process: nothing
of TensorFlow has run in it, its modules are hidden until they are imported, JAX and this package are not there yet; and
environment, folder, arguments and streams are those that were asked for. Only the seed of Python's hashes is that of
the other forks. Whatever differs in more (options of the interpreter or variables that it reads, a preloaded library, a
terminal, other users, files or limits) is started anew.
"""

import ctypes
import gc
import importlib.abc
import importlib.machinery
import json
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import threading
import types

_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER
_EARLY = ("PYTHON", "LC_", "LANG", "LD_", "GLIBC_", "MALLOC_", "TF_")  # read when a process, or TensorFlow, begins
ANEW = (sys.executable, "-u")  # begins a command that is a new process, for what looks at all that it imports
_PYTHON = sys.executable  # which tests may replace
_lock = threading.Lock()
_servers: dict[int, socket.socket] = {}  # of the process with this id


def install() -> None:
    """Makes `subprocess` fork where it can; on Linux alone."""
    if sys.platform != "linux" or hasattr(subprocess, "_start_anew"):
        return
    subprocess._start_anew = subprocess._fork_exec
    subprocess._fork_exec = _start


def _start(args, executables, close_fds, keep, folder, environment, *rest) -> int:
    """What `_posixsubprocess.fork_exec` does: gives the id of a child."""
    streams = [rest[index] for index in (0, 3, 5)]
    streams = [number if stream == -1 else stream for number, stream in enumerate(streams)]
    command = [os.fsdecode(word) for word in args]
    variables = {**os.environ} if environment is None else dict(os.fsdecode(line).split("=", 1) for line in environment)
    plain = executables == (os.fsencode(_PYTHON),) and command[1:2] in (["-c"], ["-m"]) and len(command) > 2
    # No files are kept open but the one for errors; no process group, group, groups, user, mask or function is given.
    plain = plain and close_fds and len(keep) == 1 and rest[10:16] == (-1, None, None, None, -1, None)
    if not plain or any(map(os.isatty, streams)) or _early(variables) != _early(os.environ):
        return subprocess._start_anew(args, executables, close_fds, keep, folder, environment, *rest)
    request = {"command": command[1:], "variables": variables, "session": rest[9], "umask": os.umask(0)}
    os.umask(request["umask"])
    request["folder"] = os.getcwd() if folder is None else os.fsdecode(folder)
    with _lock:
        server = _servers.get(os.getpid()) or _start_server()
        ctypes.CDLL(None).prctl(_SUBREAPER, 1)  # a fork's fork whose parent has ended is our child
        try:
            data = json.dumps(request).encode()
            socket.send_fds(server, [len(data).to_bytes(8, "big")], streams)
            server.sendall(data)
            return int.from_bytes(_receive(server, 8), "big")
        finally:
            ctypes.CDLL(None).prctl(_SUBREAPER, 0)


def _early(variables) -> dict[str, str]:
    return {name: variables[name] for name in variables if name.startswith(_EARLY) and name != "PYTHONPATH"}


def _start_server() -> socket.socket:
    ours, theirs = socket.socketpair()
    with theirs:
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        process = subprocess.Popen(
            [_PYTHON, __file__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=variables | {"OPENBLAS_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "2"},  # no threads, nothing said
        )
    process.returncode = 0  # nobody waits for it: it ends when this process does
    _servers[os.getpid()] = ours
    return ours


def _receive(connection: socket.socket, size: int) -> bytes:
    data = connection.recv(size, socket.MSG_WAITALL)
    if len(data) != size:
        raise ConnectionError("the other side of the socket has ended")
    return data


class _Hidden(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives TensorFlow back to who imports it."""

    def __init__(self):
        names = [name for name in sys.modules if name.partition(".")[0] == "tensorflow"]
        self._modules = {name: sys.modules.pop(name) for name in names}

    def find_spec(self, name, path=None, target=None):
        if name != "tensorflow":
            return None
        self._spec = self._modules[name].__spec__
        return importlib.machinery.ModuleSpec(name, self)

    def create_module(self, spec):
        return self._modules[spec.name]

    def exec_module(self, module):
        sys.meta_path.remove(self)  # not before: some ask whether it could be imported, and do not
        sys.modules |= self._modules
        module.__spec__ = self._spec


def _serve(connection: socket.socket) -> list[str]:
    """Forks for every request; returns, in the fork, the command."""
    sys.modules["jax"] = None  # which one part of TensorFlow would import, and which reads the environment
    import tensorflow  # noqa: F401

    del sys.modules["jax"], tensorflow
    sys.meta_path.insert(0, _Hidden())
    tempfile.tempdir = None
    gc.collect()
    gc.freeze()
    while True:
        size, streams, _, _ = socket.recv_fds(connection, 8, 3)
        if not size:
            os._exit(0)
        request = json.loads(_receive(connection, int.from_bytes(size, "big")))
        reader, writer = os.pipe()
        between = os.fork()
        if not between:
            if child := os.fork():
                os.write(writer, child.to_bytes(8, "big"))
                os._exit(0)
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
            os.closerange(3, connection.fileno() + 64)
            connection.detach()
            return _take_over(request)
        os.waitpid(between, 0)
        connection.sendall(os.read(reader, 8))
        for descriptor in (reader, writer, *streams):
            os.close(descriptor)


def _take_over(request) -> list[str]:
    """Becomes the process that was asked for, up to its first line."""
    os.umask(request["umask"])
    if request["session"]:
        os.setsid()
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ |= request["variables"]
    kind, name, *arguments = request["command"]
    first = "" if kind == "-c" else os.getcwd()
    more = request["variables"].get("PYTHONPATH")
    sys.path[:1] = [first, *(more.split(os.pathsep) if more else [])]  # in place of this file's folder
    sys.argv, sys.orig_argv = [kind, *arguments], [_PYTHON, *request["command"]]
    sys.modules["__main__"] = types.ModuleType("__main__")
    return request["command"][:2]


if __name__ == "__main__":
    kind, code = _serve(socket.socket(fileno=int(sys.argv[1])))
    if kind == "-m":
        runpy._run_module_as_main(code)
    else:
        exec(compile(code, "<string>", "exec"), vars(sys.modules["__main__"]))
