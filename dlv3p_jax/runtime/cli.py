"""What the commands have in common: their log, their --help, and how they answer to wrong flags and folders."""

import contextlib
import difflib
import errno
import logging as stdlib_logging
import math
import os
import pathlib
import re
import sys
import tempfile
import textwrap
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from absl import app, flags, logging
from etils import epath

from dlv3p_jax.configs import common
from dlv3p_jax.runtime import arguments, disk_errors, terminal
from dlv3p_jax.runtime.errors import UserError

Value = TypeVar("Value")


def _flatten(config, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in config.items():  # not flax's flatten_dict, which imports JAX: wrong flags do not wait for that
        if hasattr(value, "items"):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


_DEFAULTS = dict(_flatten(common.get_config()))
_CONFIGS = pathlib.Path(common.__file__).parent
# What the extra `train` installs: reading and making data sets, and writing curves.
_OF_TRAINING = ("array_record", "clu", "tensorflow", "tensorflow_datasets")


def configure_logging() -> None:
    """Shows the run's own log, and keeps out of it what libraries say about every save and data set."""
    logging.set_verbosity(max(logging.get_verbosity(), logging.INFO))
    handler = logging.get_absl_handler()
    handler.addFilter(_is_ours)
    handler.setFormatter(terminal.LineFormatter())
    if sys.stderr.isatty():
        handler.python_handler.setStream(terminal.AboveBars(sys.stderr))
    sys.unraisablehook = _say_unraisable


def make_deterministic() -> None:
    """Asks XLA for GPU programs that give the same bits whenever they are run; to be called before JAX has devices.

    The flag replaces operations whose order of sums is left to chance, such as scatters with atomic additions, and
    chooses kernels without timing them, since another choice is another rounding. Elsewhere it changes nothing.
    """
    flag = "--xla_gpu_deterministic_ops=true"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    logging.info("Deterministic: XLA_FLAGS has %s, for the same bits in every run on the same GPUs; it is slower", flag)


def check_folder(command: str, flag: str, path: str | os.PathLike) -> None:
    """Ends the program in one line if nothing can be written below `path`, the value of `flag`, which need not exist.

    A part of it is a file, its file system is read-only or full, or it is in a bucket that cannot be written.
    """
    if "://" in os.fspath(path):
        if reason := _why_not_written(os.fspath(path)):
            sys.exit(f"{command}: --{flag}={path} cannot be written: {reason}")
        return
    found = next(part for part in (pathlib.Path(path), *pathlib.Path(path).parents) if os.path.exists(part))
    if not found.is_dir():
        sys.exit(f"{command}: --{flag}={path}: {found} is a file, not a folder; give another --{flag}")
    if max(len(os.fsencode(part)) for part in pathlib.Path(path).absolute().parts) > os.pathconf(found, "PC_NAME_MAX"):
        sys.exit(f"{command}: --{flag}={path}: the name is too long for this file system; give another --{flag}")
    try:
        tempfile.TemporaryDirectory(dir=found, prefix=".dlv3p_jax_").cleanup()  # root passes every question for rights
    except OSError as error:
        sys.exit(f"{command}: --{flag}={path}: {found} cannot be written ({error.strerror}); give another --{flag}")


def told(error: Exception, where: object = "") -> str:
    """What to say of an error that ends a command.

    Of the system's, that is its file, or `where` if it names none, and what is wrong; of a name that is too long, the
    flag that gave it. Others speak for themselves.
    """
    if not isinstance(error, OSError) or error.errno is None:
        return str(error)
    if error.errno == errno.ENAMETOOLONG:
        texts = [(flag, text) for flag, text in _flatten(flags.FLAGS.flag_values_dict()) if text and type(text) is str]
        given = [(len(text), flag, text) for flag, text in texts if text in str(error.filename)]
        if given:
            _, flag, text = max(given)
            return f"--{flag}={text}: the name is too long for this file system; give another --{flag}"
    return disk_errors.told(error, where)


def _why_not_written(url: str) -> str | None:
    """Makes a folder in a bucket; says why that cannot be, in place of the traceback that would come minutes later."""
    scheme, _, rest = url.partition("://")
    try:
        if scheme == "gs":
            from google.cloud.storage import Client

            Client().get_bucket(rest.partition("/")[0])  # as Orbax does, to know how the bucket renames
        epath.Path(url).mkdir(parents=True, exist_ok=True)
    except ImportError:
        return "Orbax needs google-cloud-storage for it; pip install google-cloud-storage google-cloud-storage-control"
    except KeyError:
        return f"nothing here knows {scheme}://"
    except Exception as error:  # of TensorFlow's, of Google's and of other classes
        roles = "roles/storage.objectUser and roles/storage.legacyBucketReader"
        return (
            f"{' '.join(str(error).split())[:400]}. Is the name right, is this machine logged in, and has it, for "
            f"gs://, {roles} on the bucket?"
        )
    return None


def _say_unraisable(unraisable) -> None:
    """As Python does, but for what follows from an error that is told anyway.

    TensorStore ends the writes of a save that failed, for a loop that is closed; of what Orbax reads at once, one part
    has raised the error, and the others are ended with theirs.
    """
    code = getattr(unraisable.object, "cr_code", None)  # of a coroutine
    if str(unraisable.exc_value) != "Event loop is closed" and not (code and "orbax" in code.co_filename):
        sys.__unraisablehook__(unraisable)


def _is_ours(record) -> bool:
    if "_CHECKPOINT_METADATA" in record.getMessage():  # Orbax misses a file beside items that are read one by one
        return False
    if record.exc_info and any(name in record.pathname for name in ("orbax", "asynclib", "asyncio")):
        return False  # the traceback of an error in a background thread, which comes to us as well
    return record.levelno > stdlib_logging.INFO or not any(
        name in record.pathname for name in ("orbax", "tensorflow_", "tensorflow/python", "xla_bridge", "/clu/")
    )


def refuse_words(argv: list[str]) -> None:
    """Raises app.UsageError where something is left of a command's arguments (`argv[0]` is its name) beside flags."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}: flags are written --name=value, without blanks")


def parse_size(flag: str, words: Sequence[str]) -> tuple[int, int]:
    """(height, width) of the words of a flag; raises ValueError where they are no such thing."""
    try:
        height, width = map(int, words)
        if min(height, width) < 1:
            raise ValueError
    except ValueError:
        message = f"--{flag}={','.join(words)}: give whole numbers, HEIGHT,WIDTH in pixels, without blanks"
        raise ValueError(message) from None
    return height, width


def parse_scales(words: Sequence[str]) -> tuple[float, ...]:
    """The numbers of the flag --scales; raises ValueError where they are no scales."""
    try:
        scales = tuple(map(float, words))
        if not scales or not all(0 < scale < math.inf for scale in scales):
            raise ValueError
    except ValueError:
        message = f"--scales={','.join(words)}: give positive numbers, such as 0.75,1.0,1.25, without blanks"
        raise ValueError(message) from None
    return scales


def required(flag: flags.FlagHolder[Value | None]) -> Value:
    """The value of a flag that has to be given; raises app.UsageError where it is not."""
    if flag.value is None:
        raise app.UsageError(f"give --{flag.name}")
    return flag.value


def require_config(argv: list[str]) -> None:
    """Raises app.UsageError where something is left beside flags, and where --config is not given."""
    refuse_words(argv)
    if flags.FLAGS.config is None:
        raise app.UsageError("give --config=FILE, such as --config=configs/cityscapes_r50.py")


def run(main: Callable[[list[str]], None], command: str, in_words: Callable[[Exception], str] = told) -> None:
    """Runs a command, whose flags are defined; what a user can mend ends it in one line that begins with its name.

    That are wrong flags, every `UserError` and other ValueError, and every OSError. --verbosity=1 shows the traceback.

    Args:
        main: gets what is left of the arguments beside flags, `argv[0]` being the program; raises app.UsageError where
          flags do not go together.
        command: its name.
        in_words: what to say of an error that is not about flags.
    """

    def answer(argv: list[str]) -> None:
        if os.path.expanduser("~") == "~":  # as under a user id without a name: libraries would make a folder called ~
            os.environ["HOME"] = "/nonexistent"  # which they know how to do without
        try:
            main(argv)
        except app.UsageError as error:  # which absl would answer with all of --help
            sys.exit(f"{command}: {error} (--help lists the flags)")
        except ModuleNotFoundError as error:
            if (package := (error.name or "").partition(".")[0]) not in _OF_TRAINING:
                raise
            sys.exit(f"{command}: this needs {package}, which is not installed: pip install 'dlv3p_jax[train]'")
        except (ValueError, OSError) as error:
            logging.debug("The traceback of the error below", exc_info=True)
            sys.exit(f"{command}: {in_words(error)}")

    terminal.prepare()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # TensorFlow only decodes here; with it, it says so at length
    # Without a home folder it says that its list of fonts goes with the process.
    stdlib_logging.getLogger("matplotlib").setLevel(stdlib_logging.ERROR)
    try:
        app.run(answer, flags_parser=make_flags_parser(command))
    except KeyboardInterrupt:
        print(f"\n{command}: interrupted", file=sys.stderr, flush=True)
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(130)  # as a shell counts SIGINT; JAX may be compiling, and crashes where Python ends meanwhile


def make_flags_parser(command: str) -> Callable[[list[str]], list[str]]:
    """For `app.run`: wrong flags end in one line that begins with the command's name, without a traceback."""

    def parse(argv: list[str]) -> list[str]:
        if {"--help", "-help", "-h", "-?"} & set(argv[1:]):
            print(_help(flags.FLAGS))
            sys.exit()
        try:
            return arguments.parse(argv, flags.FLAGS, _DEFAULTS)
        except Exception as error:
            sys.exit(f"{command}: {_in_words(error)}")

    return parse


def _in_words(error: Exception) -> str:
    """One line of what absl, ml_collections and files of configurations say about a wrong flag."""
    ours = [link for link in disk_errors.chain(error) if isinstance(link, UserError)]
    if ours:  # of the config.json in --workdir, which ml_collections has wrapped
        return str(ours[-1])
    text = " ".join(str(error).split())
    if missing := re.search(r"earlier failure to load: .*No such file or directory: '(.*?)'", text):
        names = {path.stem: f"configs/{path.name}" for path in _CONFIGS.glob("[a-z]*.py")}
        near = difflib.get_close_matches(pathlib.Path(missing[1]).stem, names, n=1, cutoff=0.4) or ["common"]
        return f"--config={missing[1]}: there is no such file; --config={names[near[0]]} is one"
    last = traceback.extract_tb(error.__traceback__)[-1]
    if isinstance(error, SyntaxError) or last.name in ("get_config", "<module>"):
        file, line = (error.filename, error.lineno) if isinstance(error, SyntaxError) else (last.filename, last.lineno)
        return f"--config={file} cannot be loaded: line {line}: {type(error).__name__}: {error}"
    if "has no attribute 'get_config'" in text:
        return "the file of --config has no function get_config(), as those in configs/ have"
    text = re.sub("Configuration is not available .* failure to load", "--config cannot be loaded", text)
    for pattern, expected in (
        (r": invalid literal for int\(\) with base 10: .*", "a whole number"),
        (r": could not convert string to float: .*", "a number"),
        (r": \('Non-boolean argument.*", "True or False"),
    ):
        text = re.sub(pattern, f": give {expected}", text)
    return f"{text} (--help lists the flags)"


def _help(values: flags.FlagValues) -> str:
    """What a command does and takes: its own flags, those of our libraries behind it, and the configuration's keys."""
    doc = sys.modules["__main__"].__doc__ or ""
    parts = [doc.strip(), f"Flags:\n{_flags_of(values, sys.argv[0])}"]
    for name in sorted(values.flags_by_module_dict()):
        if name.startswith("dlv3p_jax."):
            title = (sys.modules[name].__doc__ or name).splitlines()[0].rstrip(".")
            parts.append(f"{title}:\n{_flags_of(values, name)}")
    if "config" in values:
        parts.append(_keys(arguments.READS["config"]))
    return "\n\n".join([*parts, "--helpfull lists the flags of the libraries too."])


def _keys(reads: tuple[str, ...]) -> str:
    """The configuration's keys with their meaning, the comments of configs/common.py; `reads` as of DEFINE_config."""
    source = (_CONFIGS / "common.py").read_text(encoding="utf-8")
    meanings = dict(re.findall(r"^    config\.([\w.]+) = .*?  # (.*)$", source, re.MULTILINE))
    title = "Keys of --config, as --config.KEY=VALUE, with the defaults of configs/common.py:"
    if reads:
        title = "Keys of --config, as --config.KEY=VALUE, that count here; what is not given is as in the file:"
    lines = [
        f"{key if reads else f'{key}={default!r}'.replace(' ', '')}: {meanings[key]}"
        for key, default in _DEFAULTS.items()
        if key.startswith(reads or "")
    ]
    wrapped = (textwrap.fill(line, 100, initial_indent="  ", subsequent_indent="    ") for line in lines)
    return "\n".join([title, *wrapped])


def _flags_of(values: flags.FlagValues, module: str) -> str:
    return values.module_help(module).strip("\n").partition("\n")[2]  # without the module's name
