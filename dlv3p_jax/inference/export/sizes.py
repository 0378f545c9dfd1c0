"""The size of the pictures that an exported model takes, where its user does not say, and whether it fits the model."""

import collections

from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.evaluation.views import Views
from dlv3p_jax.runtime import text

ASK = "give --height and --width, the size of the pictures that the model will take"
_LEAST, _MOST = 0.75, 4.0  # of a side of the training crops; Cityscapes' pictures have twice their crops' sides


def evaluated_at(config) -> tuple[tuple[int, int], str]:
    """(height, width) that a model is evaluated at, and where that stands: `eval_size`, or its data set's pictures.

    Of pictures of several sizes, it is the most frequent; what `eval.resize` makes of it, where that is set.

    Raises:
        ValueError: neither is there; the message asks for the flags.
    """
    if config.eval_size is not None:
        return tuple(config.eval_size), "eval_size of its configuration"
    try:
        from dlv3p_jax.data import records  # only this needs TensorFlow Datasets

        counts = collections.Counter(
            records.open_dataset(config.dataset, config.data_dir).sizes(config.eval_split)
        ).most_common(1)
    except ImportError as error:
        raise ValueError(f"{ASK} (its data set would tell, but {error})") from error
    except DatasetError as error:
        raise ValueError(f"{ASK} (its data set would tell, but: {text.one_line(error)})") from error
    [(size, _)] = counts
    origin = f"the most frequent of {config.dataset} {config.eval_split}"
    if config.eval.resize is None:
        return size, origin
    (size,) = Views(resize=config.eval.resize).sizes(size)
    return size, f"{origin}, as eval.resize makes it"


def remark(size: tuple[int, int], config) -> str | None:
    """What to say of pictures of a (height, width) far from what the model was trained on; None of others."""
    crop = tuple(config.crop_size)
    if all(_LEAST <= side / trained <= _MOST for side, trained in zip(size, crop, strict=True)):
        return None
    height, width = size
    return (
        f"The model was trained on crops of {crop[0]}x{crop[1]}, and now takes pictures of {height}x{width} (height x "
        "width). It may be much less accurate there: measure it on such pictures, or export for the size of its crops "
        "and resize yours"
    )
