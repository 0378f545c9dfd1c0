"""What the commands that take a --config have in common: their log, and how they answer to wrong flags."""

import collections
import logging as stdlib_logging
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterator

from absl import app, flags, logging
from etils import epath

from configs import common


def _keys_that_can_be_none(config, prefix: str = "") -> Iterator[str]:
    for key, value in config.items():  # not flax's flatten_dict, which imports JAX: wrong flags do not wait for that
        if hasattr(value, "items"):
            yield from _keys_that_can_be_none(value, f"{prefix}{key}.")
        elif value is None:
            yield prefix + key


_KEYS_THAT_CAN_BE_NONE = list(_keys_that_can_be_none(common.get_config()))


def configure_logging() -> None:
    """Shows the run's own log, and keeps out of it what libraries say about every save and data set."""
    logging.set_verbosity(max(logging.get_verbosity(), logging.INFO))
    logging.get_absl_handler().addFilter(_is_ours)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # TensorFlow only decodes here; with it, it says so at length


def make_deterministic() -> None:
    """Asks XLA for GPU programs that give the same bits whenever they are run; to be called before JAX has devices.

    The flag replaces operations whose order of sums is left to chance, such as scatters with atomic additions, and
    chooses kernels without timing them, since another choice is another rounding. Elsewhere it changes nothing.
    """
    flag = "--xla_gpu_deterministic_ops=true"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    logging.info("Deterministic: XLA_FLAGS has %s, for the same bits in every run on the same GPUs; it is slower", flag)


def check_folder(command: str, flag: str, path: str | os.PathLike) -> None:
    """Ends the program in one line if no folder can be at `path`, the value of `flag`.

    A part of it is a file, or it is in a bucket that cannot be written.
    """
    if "://" in os.fspath(path):
        if reason := _why_not_written(os.fspath(path)):
            sys.exit(f"{command}: --{flag}={path} cannot be written: {reason}")
        return
    found = next((part for part in (pathlib.Path(path), *pathlib.Path(path).parents) if part.exists()), None)
    if found is not None and not found.is_dir():
        sys.exit(f"{command}: --{flag}={path}: {found} is a file, not a folder")


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


def _is_ours(record) -> bool:
    if "_CHECKPOINT_METADATA" in record.getMessage():  # Orbax misses a file beside items that are read one by one
        return False
    if record.exc_info and any(name in record.pathname for name in ("orbax", "asynclib")):
        return False  # the traceback of an error in a background thread, which comes to us as well
    return record.levelno > stdlib_logging.INFO or not any(
        name in record.pathname for name in ("orbax", "tensorflow_", "xla_bridge")
    )


def refuse_words(argv: list[str]) -> None:
    """Raises app.UsageError where something is left of a command's arguments (`argv[0]` is its name) beside flags."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}: flags are written --name=value, without blanks")


def require_config(argv: list[str]) -> None:
    """The same, and where --config is not given."""
    refuse_words(argv)
    if flags.FLAGS.config is None:
        raise app.UsageError("give --config=FILE, such as --config=configs/cityscapes_r50.py")


def make_flags_parser(command: str) -> Callable[[list[str]], list[str]]:
    """For `app.run`: wrong flags end in one line that begins with the command's name, without a traceback."""

    def parse(argv: list[str]) -> list[str]:
        # ml_collections would take None for a word or a wrong number, and it reads sys.argv as well.
        to_none = {f"--config.{key}=None": key for key in _KEYS_THAT_CAN_BE_NONE}
        keys = [to_none[arg] for arg in argv if arg in to_none]
        sys.argv = [arg for arg in argv if arg not in to_none]
        given = collections.Counter(match[1] for arg in argv if (match := re.match(r"--?(config\.[\w.]+)(?:=|$)", arg)))
        if twice := [key for key, count in given.items() if count > 1]:  # it would join the two where they are tuples
            sys.exit(f"{command}: --{twice[0]} is given twice: leave one")
        try:
            positional = flags.FLAGS(sys.argv)
            if keys and flags.FLAGS.config is not None:
                flags.FLAGS.config.update_from_flattened_dict(dict.fromkeys(keys))
            return positional
        except (
            AttributeError,
            KeyError,
        ) as error:  # what ml_collections answers to an unknown key, with its suggestion
            key = re.sub(r"[\\'\"]", "", str(error.args[0]).replace("\\n", ". "))
            sys.exit(f"{command}: the config has no key {key} (configs/common.py has them all)")
        except (flags.Error, TypeError, ValueError) as error:
            sys.exit(f"{command}: {error} (--help lists the flags)")

    return parse
