"""A command's arguments, which mean the same however they come.

A flag may be on the command line or in a --flagfile, with its value behind `=` or as the next word, in quotes that a
shell took away or that it left (it takes none away in a file). `None` is no value, `~` the home folder.
"""

import collections
import contextlib
import os
import pathlib
import re
import sys
from collections.abc import Iterable, Iterator

from absl import flags
from etils import epath
from ml_collections import config_flags

from dlv3p_jax.configs import common
from dlv3p_jax.runtime import hints

# ml_collections looks here for keys of --config: sys.argv, where it would, names flagfiles, and is read at import.
_ARGUMENTS: list[str] = []
_CONFIGS = pathlib.Path(common.__file__).parent
READS: dict[str, tuple[str, ...]] = {}  # see DEFINE_config
_PATH_KEYS = ("data_dir", "pretrained")

flags.disclaim_key_flags()  # what is defined by DEFINE_config belongs to the module that calls it


def DEFINE_config(  # noqa: N802
    name: str, help_string: str, reads: tuple[str, ...] = (), flag_values: flags.FlagValues = flags.FLAGS
) -> flags.FlagHolder:
    """Defines the flag of a file of configs/, whose keys are --NAME.KEY=VALUE; None where it is not given.

    `reads` is how the keys begin that a command for trained models reads, for --help; (): it takes them all.
    """
    holder = config_flags.DEFINE_config_file(name, None, help_string, flag_values=flag_values, sys_argv=_ARGUMENTS)
    READS[name] = reads
    return holder


def parse(argv: list[str], values: flags.FlagValues, defaults: dict[str, object]) -> list[str]:
    """Parses a command's arguments into `values`; returns what is left of them, `argv[0]` being the program.

    Args:
        argv: as the shell gave them.
        values: the flags that are defined.
        defaults: the keys of --config and their defaults.

    Raises:
        flags.Error, ValueError, and whatever a file of configs/ raises when it is run: a flag is wrong.
    """
    with contextlib.suppress(FileNotFoundError):
        _require_utf8("the current folder", os.getcwd())
    plain = _plain(list(_expand(argv[1:])), values, defaults)
    plain = [argv[0], *_config_of_workdir(plain, values), *plain]
    keys = [argument for argument in plain if argument.startswith(("--config.", "--noconfig."))]
    if keys and "config" in values and not plain[1].startswith("--config="):
        raise flags.Error(f"{keys[0]} changes a key of --config=FILE: give that too, such as --config=quickstart")
    of_config = [match[1] for arg in plain if (match := re.match(r"--(?:no)?(config(?:\.[\w.]+)?)(?:=|$)", arg))]
    if twice := [key for key, count in collections.Counter(of_config).items() if count > 1]:
        raise flags.Error(f"--{twice[0]} is given twice: leave one")  # two tuples would be joined
    # ml_collections would take None for a word or a wrong number.
    none = [key for key, default in defaults.items() if default is None and f"--config.{key}=None" in plain]
    _ARGUMENTS[:] = [arg for arg in plain if arg not in {f"--config.{key}=None" for key in none}]
    try:
        positional = values(_ARGUMENTS)
    except flags.UnrecognizedFlagError as error:
        if "Did you mean" in str(error) or "config" not in values:
            raise
        if (hint := hints.meant(error.flagname, defaults)) is None:
            raise
        raise flags.Error(f"--{error.flagname}: no such flag: {hint}") from error
    except (AttributeError, KeyError) as error:  # ml_collections', of a key that the configuration lacks
        unknown = [key for key in (name.removeprefix("config.") for name in of_config[1:]) if key not in defaults]
        if not unknown:
            raise
        hint = hints.meant(unknown[0], defaults) or hints.OTHERWISE
        raise flags.Error(f"--config.{unknown[0]}: no such key: {hint}") from error
    config = values.config if "config" in values else None
    if config is not None:  # a file that could not be loaded raises when the first key is asked for
        config["dataset"]
        config.update_from_flattened_dict(dict.fromkeys(none))
        for key in _PATH_KEYS:
            if isinstance(config.get(key), str):
                config[key] = _at_home(f"config.{key}", config[key])
    return positional


def _expand(argv: Iterable[str], inside: tuple[str, ...] = ()) -> Iterator[str]:
    """The arguments with those of files in place of every --flagfile."""
    arguments = iter(argv)
    for argument in arguments:
        if argument == "--":
            yield argument
            yield from arguments
            return
        match = re.fullmatch(r"--?flagfile(?:=(.*))?", argument)
        if match is None:
            yield argument
            continue
        path = _at_home("flagfile", _unquoted(match[1] if match[1] is not None else next(arguments, "")))
        try:
            content = pathlib.Path(path).read_bytes()
        except OSError as error:
            raise flags.Error(f"--flagfile={path}: cannot be read ({error.strerror})") from error
        if path in inside:
            raise flags.Error(f"--flagfile={path}: names itself")
        lines = (line.strip() for line in os.fsdecode(content).splitlines())  # as the shell gives words to Python
        yield from _expand(
            [_unquoted(line) for line in lines if line and not line.startswith(("#", "//"))], (*inside, path)
        )


def _plain(arguments: list[str], values: flags.FlagValues, defaults: dict[str, object]) -> list[str]:
    """The same as --NAME=VALUE each, the file of --config before its keys, without those that are None."""
    plain, rest = [], iter(arguments)
    for argument in rest:
        name, is_pair, value = argument.lstrip("-").partition("=")
        if not argument.startswith("-") or not name:
            plain.append(argument)
            if argument == "--":
                break
            continue
        key = name.removeprefix("config.")
        if key != name and key in defaults:
            boolean, can_be_none = isinstance(defaults[key], bool), False
        elif name in values:
            boolean, can_be_none = values[name].boolean, values[name].default is None
        else:  # unknown, or --noNAME
            plain.append(f"--{name}={_unquoted(value)}" if is_pair else f"--{name}")
            continue
        if not is_pair:
            if boolean:
                plain.append(f"--{name}")
                continue
            value = next(rest, "")
            if not value:
                raise flags.Error(f"--{name} lacks its value: flags are written --name=value")
        value = _at_home(name, _unquoted(value))
        _require_utf8(f"--{name}={value}", value)
        if can_be_none and value == "None":
            continue
        if name == "config":
            plain.insert(0, f"--config={_config_file(value)}")
        else:
            plain.append(f"--{name}={value}")
    return [*plain, *rest]


def _unquoted(text: str) -> str:
    """Without the quotes that a shell would have taken away."""
    match = re.fullmatch(r"(--?[\w.]+=)?(['\"])(.*)\2", text, re.DOTALL)
    return text if match is None or match[2] in match[3] else f"{match[1] or ''}{match[3]}"


def _at_home(name: str, value: str) -> str:
    """With the home folder in place of a `~`, which shells put in only at the beginning of a word."""
    path = os.path.expanduser(value) if value.startswith("~") else value
    if path == value and (value == "~" or value.startswith("~/")):
        raise flags.Error(f"--{name}={value}: where the home folder is, is not known (HOME is not set); give all of it")
    return path


def _require_utf8(what: str, value: str) -> None:
    """Raises flags.Error, which begins with `what`, for a path that is no UTF-8: TensorFlow and Orbax take no other."""
    try:
        value.encode()
    except UnicodeEncodeError:
        encoding = sys.getfilesystemencoding()
        mend = (
            "rename it, or give another"
            if encoding == "utf-8"
            else f"here names are taken for {encoding}: set LC_ALL=C.UTF-8, or PYTHONUTF8=1"
        )
        raise flags.Error(f"{what}: its name is no UTF-8; {mend}") from None


def _config_of_workdir(plain: list[str], values: flags.FlagValues) -> list[str]:
    """The flag that takes the configuration of the run in --workdir, where there is one and --config is not given."""
    given = dict(argument.removeprefix("--").split("=", 1) for argument in plain if re.match(r"--[\w.]+=", argument))
    if "config" not in values or "config" in given or "workdir" not in given:
        return []
    path = os.path.join(given["workdir"], "config.json")
    there = epath.Path(path).exists() if "://" in path else os.path.exists(path)
    return [f"--config={_config_file(path)}"] if there else []


def _config_file(value: str) -> str:
    """The installed file of --config=NAME and --config=configs/NAME.py, where the current folder has none.

    And what reads --config=FOLDER/config.json.
    """
    if value.endswith(".json"):
        return f"{pathlib.Path(__file__).with_name('workdir_config.py')}:{value}"
    path, colon, argument = value.partition(":")
    name = os.path.basename(path)
    installed = _CONFIGS / (name if name.endswith(".py") else f"{name}.py")
    is_ours = path in (installed.stem, name) or os.path.dirname(path) in ("configs", "./configs")
    if is_ours and not os.path.isfile(path) and installed.is_file():
        return f"{installed}{colon}{argument}"
    return value
