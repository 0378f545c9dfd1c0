"""What a configuration may hold, how it is written, and what may change when a run goes on."""

import json
import pathlib
import sys

import ml_collections
import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

from dlv3p_jax.configs import common
from dlv3p_jax.runtime import configuration, sealing
from dlv3p_jax.runtime.configuration import ConfigError

COMMON = pathlib.Path(common.__file__)


def make_config(changes=()):
    """The defaults with a data set, and changes by dotted key."""
    config = common.get_config()
    config.update_from_flattened_dict({"dataset": "toy_streets"} | dict(changes))
    return config


def parse(monkeypatch, *arguments):
    """The configuration that a command line gives, as `main` defines the flag."""
    arguments = ["main", f"--config={COMMON}", *arguments]
    monkeypatch.setattr(sys, "argv", arguments)  # where config_flags looks for the overrides
    flag_values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=flag_values)
    flag_values(arguments)
    return flag_values.config


def test_the_defaults_with_a_data_set_pass_also_when_resolved():
    configuration.check(make_config())
    configuration.check(configuration.resolve(make_config(), 5, 255))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("dataset", "", "name a prepared data set"),
        ("crop_size", (512,), r"give \(height, width\)"),
        ("crop_size", (512, 0), r'"\(512, 1024\)"'),
        ("crop_size", (512.5, 512), "in pixels"),
        ("eval_size", (None,), "in pixels"),  # what --config.eval_size=None becomes
        ("eval_size", (64, -1), "in pixels"),
        ("batch_size", 1, "BatchNorm needs a global batch of at least 2"),
        ("accumulate_steps", 0, "at least 1"),
        ("accumulate_steps", 3, "config.batch_size=8 must divide into so many micro-batches"),
        ("accumulate_steps", 8, "of at least 2 pictures"),
        ("eval.batch_size", 0, "at least 1"),
        ("num_train_steps", 0, "at least 1"),
        ("log_every_steps", 0, "at least 1"),
        ("eval_every_steps", 0, "at least 1"),
        ("checkpoint_every_steps", -1, "at least 1"),
        ("keep_checkpoints", 0, "at least 1"),
        ("learning_rate", 0.0, "positive"),
        ("momentum", 1.0, "below 1"),
        ("momentum", -0.1, "at least 0"),
        ("weight_decay", -1e-5, "not be negative"),
        ("end_learning_rate", -1e-5, "not be negative"),
        ("poly_power", -0.9, "not be negative"),
        ("backbone_lr_factor", -1.0, "not be negative"),
        ("warmup_steps", -1, "not be negative"),
        ("profile_steps", -1, "not be negative"),
        ("seed", -1, "not be negative"),
        ("seed", 2**32, "below 4294967296"),  # JAX would begin with the parameters of seed 0
        ("seed", 2**64, "below 4294967296"),
        ("num_train_steps", 2**31, "below 2147483648"),
        ("crop_size", (2**70, 512), "below 2147483648"),
        ("warmup_steps", 80_000, "below config.num_train_steps"),
        ("clip_grad_norm", 0.0, "positive, or None"),
        ("ema_decay", 1.0, "between 0 and 1, or None"),
        ("ema_decay", 0.0, "between 0 and 1, or None"),
        ("augment.brightness", 1.1, "0 to 1"),
        ("augment.contrast", -0.1, "0 to 1"),
        ("augment.saturation", 2.0, "0 to 1"),
        ("augment.hue", 129, "0 to 128"),
        ("learning_rate", float("nan"), "finite"),
        ("clip_grad_norm", float("inf"), "finite"),
        ("loss.class_weights", (1.0, float("inf")), "finite"),
        ("loss.class_weights", "balance", "or balanced"),
        ("loss.class_weights", (1.0, "2"), "a number for each class"),
        ("optimizer", "adam", "sgd, adamw"),
        ("schedule", "linear", "poly, cosine"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_with_its_key(key, value, expected):
    with pytest.raises(ConfigError, match=expected) as caught:
        configuration.check(make_config({key: value}))
    assert str(caught.value).startswith(f"config.{key}={value!r}: ")


def test_a_missing_data_set_is_asked_for():
    with pytest.raises(ConfigError, match="config.dataset=None: name a prepared data set"):
        configuration.check(common.get_config())


def test_the_data_set_fills_in_the_classes_and_must_agree_with_those_given():
    config = make_config()
    resolved = configuration.resolve(config, 5, 255)
    assert resolved.num_classes == 5 and resolved.ignore_label == 255 and config.num_classes is None
    assert isinstance(resolved, ml_collections.FrozenConfigDict)
    assert configuration.resolve(make_config({"num_classes": 5}), 5, 255) == resolved
    message = "config.num_classes=4, but the data set toy_streets in data has 5: give --config.num_classes=5"
    with pytest.raises(ConfigError, match=message):
        configuration.resolve(make_config({"num_classes": 4}), 5, 255)
    with pytest.raises(ConfigError, match="config.ignore_label=255, but the data set toy_streets in data has 254"):
        configuration.resolve(config, 5, 254)


def test_balanced_weights_follow_from_the_counts_and_are_one_in_the_mean():
    pixels = np.array([9000, 900, 0, 100])
    config = configuration.resolve(make_config({"loss.class_weights": "balanced"}), 4, 255, pixels.tolist())
    expected = 1 / np.log(1.02 + pixels / 10_000)
    expected /= (expected * pixels).sum() / 10_000
    expected[2] = 1  # it has no pixels
    np.testing.assert_allclose(config.loss.class_weights, expected, atol=5e-5)
    for nothing in (None, [0] * 4):
        with pytest.raises(ConfigError, match="loss.class_weights='balanced': .* split 'train'"):
            configuration.resolve(make_config({"loss.class_weights": "balanced"}), 4, 255, nothing)


@pytest.mark.parametrize(("dtype", "platform", "told"), [("float32", "gpu", True), ("float32", "cpu", False)])
def test_float32_where_it_costs_is_told(caplog, dtype, platform, told):
    configuration.warn_of_float32(make_config({"model.dtype": dtype}), platform)
    assert ("--config.model.dtype=bfloat16" in caplog.text) == told


def test_what_is_left_open_is_as_the_run_was_begun_with():
    begun_with = make_config({"model.dtype": "bfloat16", "loss.class_weights": (0.5, 2.0)})
    taken = configuration.take_open(make_config({"model.dtype": "auto", "loss.class_weights": "balanced"}), begun_with)
    assert (taken.model.dtype, taken.loss.class_weights) == ("bfloat16", (0.5, 2.0))
    taken = configuration.take_open(make_config({"model.dtype": "float32"}), begun_with)
    assert (taken.model.dtype, taken.loss.class_weights) == ("float32", None)


def test_written_as_strict_json_with_tuples_as_lists(tmp_path):
    config = configuration.resolve(make_config({"eval_size": (64, 96), "eval.scales": (0.75, 1.0)}), 5, 255)
    path = tmp_path / "config.json"
    configuration.write(config, path)
    configuration.write(config, path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["config.json"]
    read = json.loads(path.read_text(), parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
    read = sealing.unseal(read)
    assert read == configuration.to_dict(config)
    assert read["crop_size"] == [512, 1024] and read["eval_size"] == [64, 96] and read["eval"]["scales"] == [0.75, 1.0]
    assert read["clip_grad_norm"] is None and read["num_classes"] == 5
    assert ml_collections.ConfigDict(read).keys() == config.keys()
    configuration.check_resume(configuration.read(path), config, tmp_path)


def test_differences_are_dotted_and_an_absent_key_is_none():
    old = {"same": 1, "gone": 2, "loss": {"top_k": 1.0, "rmi": 0.5}, "flat": 3, "none": None}
    new = {"same": 1, "loss": {"top_k": 0.2, "rmi": 0.5}, "flat": {"deep": 4}, "new": {"key": [1, 2]}}
    assert configuration.differences(old, new) == {
        "gone": (2, None),
        "loss.top_k": (1.0, 0.2),
        "flat": (3, None),
        "flat.deep": (None, 4),
        "new.key": (None, [1, 2]),
    }
    assert configuration.differences(old, old) == {}


def test_what_is_trained_may_not_change_and_how_it_is_looked_at_may():
    old = make_config()
    changed = {"accumulate_steps": 2, "crop_size": (512, 512), "loss.top_k": 0.2, "model.backbone": "resnet18_vd"}
    changed["num_train_steps"] = 90_000
    with pytest.raises(ConfigError, match="workdir/a holds a run with another configuration") as caught:
        configuration.check_resume(old, make_config(changed), "workdir/a")
    assert str(caught.value).splitlines()[1:-1] == [
        "  accumulate_steps: 1 then, 2 now",
        "  crop_size: [512, 1024] then, [512, 512] now",
        "  loss.top_k: 1.0 then, 0.2 now",
        "  model.backbone: 'resnet50_vd' then, 'resnet18_vd' now",
        "  num_train_steps: 80000 then, 90000 now",
    ]
    allowed = {
        "allow_changed_data": True,
        "cache_pictures": True,
        "checkpoint_every_steps": 7,
        "data_dir": "/elsewhere",
        "early_stopping.patience": 7,
        "eval.scales": (0.5, 1.0),
        "eval.flip": True,
        "eval_every_steps": 7,
        "eval_size": (64, 64),
        "eval_split": "test",
        "keep_checkpoints": 7,
        "log_every_steps": 7,
        "mesh.data": 1,
        "model.remat": True,
        "pretrained": "workdir/b",
        "profile_steps": 7,
    }
    keys = set(configuration.MAY_CHANGE)
    assert {key if key in keys else key.split(".")[0] for key in allowed} == keys
    configuration.check_resume(old, make_config(allowed), "workdir/a")


def test_what_an_older_version_did_not_write_is_read_as_its_default(tmp_path):
    """So that a run of then goes on, unless what it did not know is now set to something else."""
    old = configuration.to_dict(make_config({"seed": 3, "model.aspp_rates": (1, 6), "eval.flip": True}))
    for key in ("accumulate_steps", "mesh"):
        del old[key]
    del old["model"]["align_corners"], old["loss"]["dice"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    read = configuration.read(tmp_path / "config.json")
    assert read == make_config({"seed": 3, "model.aspp_rates": (1, 6), "eval.flip": True})
    configuration.check(read)
    configuration.check_resume(read, make_config({"seed": 3, "model.aspp_rates": (1, 6)}), tmp_path)
    with pytest.raises(ConfigError) as caught:
        configuration.check_resume(read, make_config({"model.aspp_rates": (1, 6), "loss.dice": 0.5}), tmp_path)
    assert str(caught.value).splitlines()[1:-1] == ["  loss.dice: 0.0 then, 0.5 now", "  seed: 3 then, 0 now"]
    for text in ("[]", "3", "{"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ConfigError, match="config.json is no configuration that this program wrote"):
            configuration.read(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("batch_size", "accumulate_steps", "told"),
    [
        (8, 1, None),
        (16, 2, None),
        (4, 1, "of 4 pictures (config.batch_size=4);"),
        (16, 4, "of 4 pictures (config.batch_size=16 / config.accumulate_steps=4);"),
    ],
)
def test_few_pictures_in_the_statistics_are_told_in_one_line(caplog, batch_size, accumulate_steps, told):
    changes = {"batch_size": batch_size, "accumulate_steps": accumulate_steps}
    configuration.warn_of_few_pictures(make_config(changes))
    assert len(caplog.records) == (told is not None) and (told or "") in caplog.text
    assert ("freeze_backbone=True" in caplog.text) == (told is not None)
    caplog.clear()
    configuration.warn_of_few_pictures(make_config(changes | {"freeze_backbone": True}))
    assert (told or "") in caplog.text and "freeze_backbone" not in caplog.text


def test_a_checkpoint_is_not_used_with_another_network(tmp_path, caplog):
    trained = make_config({"model.dtype": "float32", "model.aspp_rates": (1, 6)})
    configuration.check_model(trained, trained, tmp_path)
    with pytest.raises(ConfigError, match=r'model.aspp_rates: \[1, 6\] then, .*--config.model.aspp_rates="\(1, 6\)"'):
        configuration.check_model(make_config(), trained, tmp_path)
    assert caplog.text == ""
    changes = {"model.dtype": "bfloat16", "model.output_stride": 16, "model.dropout": 0.0}
    configuration.check_model(make_config({"model.aspp_rates": (1, 6)} | changes), trained, tmp_path)
    for key in changes:
        assert f"config.{key} is" in caplog.text
    del trained.model.align_corners  # written by a version that had no such key
    configuration.check_model(make_config({"model.aspp_rates": (1, 6)}), trained, tmp_path)


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("crop_size=(96, 128)", (96, 128)),
        ("crop_size=(96,128)", (96, 128)),
        ("crop_size=96,128", (96, 128)),
        ("eval_size=(64, 64)", (64, 64)),
        ("eval.scales=(0.75, 1.0)", (0.75, 1.0)),
        ("eval.scales=0.75", (0.75,)),
        ("eval.window=(32, 48)", (32, 48)),
        ("loss.class_weights=(1.0, 2.5)", (1.0, 2.5)),
        ("loss.class_weights=balanced", "balanced"),
        ("ema_decay=0.99", 0.99),
        ("clip_grad_norm=1", 1.0),
        ("num_classes=4", 4),
        ("pretrained=workdir/a", "workdir/a"),
        ("freeze_backbone=true", True),
    ],
)
def test_command_lines_override_keys_of_every_kind(monkeypatch, argument, expected):
    config = parse(monkeypatch, f"--config.{argument}", "--config.dataset=toy_streets")
    value = config
    for part in argument.split("=")[0].split("."):
        value = value[part]
    assert value == expected and type(value) is type(expected)
    configuration.check(config)


@pytest.mark.parametrize(
    ("argument", "name"), [("learning_rat=1", "learning_rat"), ("eval.scale=(1.0,)", "scale"), ("no.such=2", "no")]
)
def test_an_unknown_key_is_an_error_that_names_it(monkeypatch, argument, name):
    with pytest.raises((AttributeError, KeyError), match=name):
        parse(monkeypatch, f"--config.{argument}")


@pytest.mark.parametrize("argument", ["batch_size=2.5", "learning_rate=fast", "augment.hue=18.5"])
def test_a_value_of_another_type_is_an_error_that_names_the_flag(monkeypatch, argument):
    with pytest.raises(flags.IllegalFlagValueError, match=argument):
        parse(monkeypatch, f"--config.{argument}")
