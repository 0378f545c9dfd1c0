"""A model as a folder to share: `model.safetensors`, `config.json` and a card, on a disk or on Hugging Face's hub."""

import json
import re
from collections.abc import Mapping
from typing import Any

import ml_collections
import safetensors.numpy
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from dlv3p_jax.configs import common
from dlv3p_jax.models import Variables
from dlv3p_jax.runtime import configuration, files, text
from dlv3p_jax.runtime.errors import UserError
from dlv3p_jax.weights import published

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
HUB = "hf:"  # begins the name of a model on the hub
_META = "dlv3p_jax"  # the key of the file's own metadata, which are strings


class HubError(UserError):
    """A model cannot be fetched from the hub or put there; the message says which, why, and what to do."""


def is_one(path: epath.PathLike) -> bool:
    return (epath.Path(path) / WEIGHTS).is_file()


def looks_like_hub_name(name: str) -> bool:
    """Whether `name` is of the form user/model."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) is not None


def write(folder: epath.PathLike, variables: Variables, config, meta: Mapping[str, Any], card: str) -> epath.Path:
    """Writes the folder; each file appears whole or not at all, and a card that is there stays.

    Args:
        folder: is made; what else lies there stays.
        variables: {'params': …, 'batch_stats': …}.
        config: of the model; folders of this machine in it are left out.
        meta: JSON values on its classes and on where it comes from, see `checkpoint_reading.read_meta`.
        card: Markdown.

    Raises:
        ValueError: `folder` is that of a run or of another checkpoint.
        OSError: it cannot be written.
    """
    folder = epath.Path(folder)
    if (folder / "checkpoints").exists() or ((folder / CONFIG).exists() and not is_one(folder)):
        raise UserError(f"{folder} holds a run or a checkpoint, whose {CONFIG} would be lost: give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    arrays = flatten_dict(variables, sep="/")
    data = safetensors.numpy.save(arrays, {_META: json.dumps(dict(meta))})
    files.write(folder / WEIGHTS, data)
    config = ml_collections.ConfigDict(config)
    config.data_dir = common.get_config().data_dir
    if config.pretrained is not None and not published.is_name(config.pretrained):
        config.pretrained = None
    configuration.write(config, folder / CONFIG)
    if not (folder / CARD).exists():
        files.write(folder / CARD, card)
    return folder


def read_meta(folder: epath.Path) -> dict[str, Any]:
    """What `write` was given as `meta`.

    Raises:
        Exception: of many kinds, where the file is none of ours or damaged.
    """
    with (folder / WEIGHTS).open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    if _META not in header.get("__metadata__", {}):
        raise ValueError("another program wrote it")
    return json.loads(header["__metadata__"][_META])


def read_variables(folder: epath.Path) -> Variables:
    """The variables as NumPy arrays; raises as `read_meta`."""
    read_meta(folder)
    return unflatten_dict(safetensors.numpy.load((folder / WEIGHTS).read_bytes()), sep="/")


def fetch(name: str) -> epath.Path:
    """The folder of a model of the hub, USER/MODEL, in huggingface_hub's cache, where the newest of it is put.

    Raises:
        HubError: it cannot be had, or is no model of this program.
    """
    hub = _hub(name)
    try:
        folder = epath.Path(hub.snapshot_download(name, allow_patterns=[WEIGHTS, CONFIG, CARD]))
    except Exception as error:  # whatever it and the network raise
        raise HubError(
            f"{name} is no folder here, and cannot be fetched from Hugging Face's hub ({text.one_line(error)}): where "
            "there is no connection, download it elsewhere, and give the folder"
        ) from error
    if not is_one(folder):
        raise HubError(f"{name} on Hugging Face's hub has no {WEIGHTS}: it is no model of dlv3p_jax")
    return folder


def push(folder: epath.PathLike, name: str, private: bool | None = None) -> str:
    """Puts a folder onto the hub as USER/MODEL, which is made where it is not there; gives the commit's address.

    Raises:
        HubError: it cannot be put there, as nobody is logged in or there is no connection.
    """
    api = _hub(name).HfApi()
    try:
        api.create_repo(name, private=private, exist_ok=True)
        message = "A model of dlv3p_jax"
        return api.upload_folder(repo_id=name, folder_path=str(folder), commit_message=message).commit_url
    except Exception as error:
        raise HubError(
            f"{name} cannot be put onto Hugging Face's hub ({text.one_line(error)}): log in with hf auth login, or "
            "upload a folder of save_pretrained yourself"
        ) from error


def _hub(name: str):
    try:
        import huggingface_hub
    except ImportError as error:
        raise HubError(f"{name} on Hugging Face's hub needs huggingface_hub: pip install 'dlv3p_jax[hub]'") from error
    return huggingface_hub
