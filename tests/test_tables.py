"""The pages with tables against the program: what it lists has to be what there is."""

import pathlib
import re

from dlv3p_jax.configs import common

ROOT = pathlib.Path(__file__).resolve().parents[1]


def page(name):
    return (ROOT / "docs" / f"{name}.md").read_text()


def flatten(config, prefix=""):
    for key in config:
        value = config.get(key)
        if hasattr(value, "items"):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def test_every_key_is_listed_with_its_default():
    listed = dict(re.findall(r"^\| `([\w.]+)` \| `([^`]*)` \|", page("configuration"), re.MULTILINE))
    assert listed == {key: repr(value) for key, value in flatten(common.get_config())}


def test_keys_that_may_change_on_resume_are_listed():
    from dlv3p_jax.runtime.configuration import MAY_CHANGE

    text = page("training")
    paragraph = text[text.index("These keys may change") : text.index("Any other difference is refused")]
    listed = {key.removesuffix(".*") for key in re.findall(r"`([\w.*]+)`", paragraph)}
    assert listed == set(MAY_CHANGE)


def test_every_config_loads_and_differs_from_the_common_one():
    import importlib

    folder = ROOT / "configs"  # the link, as in the commands of the pages
    names = sorted(path.stem for path in folder.glob("*.py") if path.stem not in ("__init__", "common"))
    assert names
    for name in names:
        config = importlib.import_module(f"dlv3p_jax.configs.{name}").get_config()
        assert dict(flatten(config)).keys() == dict(flatten(common.get_config())).keys()
        assert config.dataset


def test_the_published_table_is_listed():
    from dlv3p_jax.weights.published import PUBLISHED

    listed = {}
    for line in re.findall(r"^\| `\w+` \| ResNet.*", page("paddleseg"), re.MULTILINE):
        name, backbone, crop, steps, *scores, _ = (cell.strip().strip("`") for cell in line.strip("|").split("|"))
        size = tuple(map(int, crop.split("x")))[::-1]
        listed[name] = (backbone.split(",")[0].lower(), size, int(steps.replace(",", "")), *map(float, scores))
    assert listed == {
        name: (
            *(row.backbone, row.crop_size, row.num_train_steps),
            *(row.plain, row.flip, row.ms_flip_legacy, row.ms_flip_logits),
        )
        for name, row in PUBLISHED.items()
    }


def test_the_models_are_listed_by_data_set_and_none_is_said_to_be_measured():
    from dlv3p_jax.weights import mmseg_models, published

    pattern = r"^\| `(\w+)` \| (\d+) \| (\d+) \| ([\d.]+) to ([\d.]+) \| none yet \|$"
    listed = [(name, *map(float, figures)) for name, *figures in re.findall(pattern, page("models"), re.MULTILINE)]
    zoos = published.PUBLISHED, mmseg_models.PUBLISHED
    expected = []
    for name in sorted({row.dataset for zoo in zoos for row in zoo.values()}):
        rows = [[row.plain for row in zoo.values() if row.dataset == name] for zoo in zoos]
        expected.append((name, *map(len, rows), min(sum(rows, [])), max(sum(rows, []))))
    assert listed == expected
