"""The configuration of a run that is there, read as files of configs: --config=workdir_config.py:WORKDIR/config.json"""

from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from dlv3p_jax.configs import common
from dlv3p_jax.runtime import configuration


def get_config(path: str) -> ConfigDict:
    """What `configuration.write` wrote to `path`, whose keys can be changed as those of `configs/common.py` can.

    Raises:
        ConfigError: the file holds something else, or was damaged or changed.
    """
    written = flatten_dict(configuration.read(path).to_dict())
    config = common.get_config()
    with config.unlocked():  # a key that is not known is told by `configuration.check`
        # What is None is so in common.py, where it has the type that a value may have.
        config.update(unflatten_dict({key: value for key, value in written.items() if value is not None}))
    return config
