"""What the commands that take a --config have in common: their log, and how they answer to wrong flags."""

import logging as stdlib_logging
import os
import re
import sys
from collections.abc import Callable

from absl import flags, logging


def configure_logging() -> None:
    """Shows the run's own log, and keeps out of it what libraries say about every save and data set."""
    logging.set_verbosity(max(logging.get_verbosity(), logging.INFO))
    logging.get_absl_handler().addFilter(_is_ours)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # TensorFlow only decodes here; with it, it says so at length


def _is_ours(record) -> bool:
    if "_CHECKPOINT_METADATA" in record.getMessage():  # Orbax misses a file beside items that are read one by one
        return False
    return record.levelno > stdlib_logging.INFO or not any(
        name in record.pathname for name in ("orbax", "tensorflow_", "xla_bridge")
    )


def make_flags_parser(command: str) -> Callable[[list[str]], list[str]]:
    """For `app.run`: wrong flags end in one line that begins with the command's name, without a traceback."""

    def parse(argv: list[str]) -> list[str]:
        try:
            return flags.FLAGS(argv)
        except (
            AttributeError,
            KeyError,
        ) as error:  # what ml_collections answers to an unknown key, with its suggestion
            key = re.sub(r"[\\'\"]", "", str(error.args[0]).replace("\\n", ". "))
            sys.exit(f"{command}: the config has no key {key} (configs/common.py has them all)")
        except (flags.Error, TypeError, ValueError) as error:
            sys.exit(f"{command}: {error} (--help lists the flags)")

    return parse
