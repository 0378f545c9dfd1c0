"""Trained models from workdirs, checkpoints, PaddleSeg's files and names, and what their classes are called."""

import jax
import numpy as np
import pytest
from drawn import draw_variables, make_config, save_checkpoint

from dlv3p_jax.configs import common
from dlv3p_jax.data import viz
from dlv3p_jax.models import build_model
from dlv3p_jax.runtime import configuration
from dlv3p_jax.training import steps
from dlv3p_jax.weights import checkpoint_files, checkpoint_reading, checkpoints, paddle, pdparams, published, trained


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workdir")
    save_checkpoint(folder, make_config())
    return folder


def write_pdparams(path, config, variables) -> None:
    pdparams.save_pdparams(paddle.revert(variables, build_model(config)), path)


def test_averaged_variables_are_preferred_and_another_network_is_told(workdir, tmp_path, caplog):
    config = make_config({"ema_decay": 0.5})
    variables = checkpoint_reading.read_variables(checkpoint_reading.find(workdir))
    state = steps.create_train_state(config, variables)
    averaged = jax.tree.map(lambda x: x + 1, variables)
    with checkpoints.Checkpoints(tmp_path) as saved:
        saved.save_best(state.replace(ema=averaged), 0.5)
    configuration.write(config, tmp_path / "config.json")
    loaded = trained.load_checkpoint(None, tmp_path, {"eval.scales": (0.5,)})
    read = loaded.config
    assert read.eval.scales == (0.5,) and read.num_classes == 19 and read.crop_size == (32, 32)
    assert loaded.source.endswith("checkpoints/best/0, step 0 (ema)")
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, averaged)

    message = 'another network:\n  model.aspp_channels: 32 then, 16 now; give --config.model.aspp_channels="32"'
    with pytest.raises(configuration.ConfigError, match=message):
        trained.load_checkpoint(make_config({"model.aspp_channels": 16}), tmp_path)
    trained.load_checkpoint(make_config({"model.dtype": "bfloat16"}), tmp_path)
    assert "config.model.dtype is 'bfloat16' here" in caplog.text
    configuration.write(make_config({"ema_decay": 0.5, "model.dtype": "auto"}), tmp_path / "config.json")
    caplog.clear()
    trained.load_checkpoint(None, tmp_path)
    assert "model.dtype" not in caplog.text  # what "auto" is here, is no difference
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match="give --config=FILE"):
        trained.load_checkpoint(None, tmp_path)


@pytest.mark.parametrize("backbone", ["resnet18_vd", "resnet34_vd", "resnet50_vd"])
def test_a_pdparams_file_says_what_network_it_is_of(tmp_path, caplog, backbone):
    config = common.get_config()
    multi_grid = (1, 1) if backbone == "resnet18_vd" else (1, 2, 4)
    changes = {"model.backbone": backbone, "model.multi_grid": multi_grid, "model.aspp_channels": 16}
    config.update_from_flattened_dict(changes | {"num_classes": 5})
    variables = draw_variables(config)
    write_pdparams(tmp_path / "model.pdparams", config, variables)
    loaded = trained.load_checkpoint(None, tmp_path / "model.pdparams", {"eval.flip": True})
    assert loaded.config.model.to_dict() == config.model.to_dict()
    assert loaded.config.num_classes == 5 and loaded.config.eval.flip
    assert loaded.class_names == tuple(f"class {index}" for index in range(5))
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)
    assert "align_corners False: give --config=FILE" in caplog.text


def test_a_pdparams_file_of_another_network_is_told(shared, tmp_path):
    path = tmp_path / "model.pdparams"
    write_pdparams(path, make_config(), draw_variables(make_config()))
    with pytest.raises(paddle.ConversionError, match="model.pdparams: these parameters are not those"):
        trained.load_checkpoint(None, path)  # two branches, where PaddleSeg has four
    assert trained.load_checkpoint(make_config(), path).config.model.aspp_rates == (1, 2)
    state = pdparams.load_pdparams(path)
    backbone = {name.removeprefix("backbone."): value for name, value in state.items() if name.startswith("backbone.")}
    pdparams.save_pdparams(backbone, path)
    with pytest.raises(ValueError, match="holds a backbone alone"):
        trained.load_checkpoint(None, path)
    pdparams.save_pdparams({"head.neck.conv0._conv.weight": np.zeros((2, 2, 1, 1), np.float32)}, path)
    with pytest.raises(paddle.ConversionError, match="not those of a DeepLabV3P"):
        trained.load_checkpoint(None, path)


def test_a_published_name_is_fetched_and_has_its_own_configuration(tmp_path, monkeypatch):
    config = published.config_of("voc_r50")
    config.update_from_flattened_dict({"num_classes": 21, "model.aspp_channels": 16})
    write_pdparams(tmp_path / "model.pdparams", config, draw_variables(config))
    monkeypatch.setattr(published, "fetch", lambda name: {"voc_r50": tmp_path / "model.pdparams"}[name])
    loaded = trained.load_checkpoint(None, "voc_r50", {"model.aspp_channels": 16})
    assert loaded.config.eval_size == (512, 512) and loaded.config.num_classes == 21
    assert loaded.class_names[:3] == ("background", "aeroplane", "bicycle")


def classes_of(folder, config, meta=None):
    save_checkpoint(folder, config, meta)
    loaded = trained.load_checkpoint(None, folder)
    return loaded.class_names, loaded.palette


def test_a_classifier_of_other_classes_is_taken_with_a_warning(tmp_path, caplog):
    """As where a line of classes.txt has moved: as many classes, and each is another."""
    config = make_config(num_classes=3)
    meta = checkpoint_reading.describe_classes(["cat", "dog", "mouse"], [[0] * 3] * 3, 255)
    save_checkpoint(tmp_path / "a", config, meta)
    found = trained.read_pretrained(tmp_path / "a", build_model(config))
    for names, told in ((["cat", "dog", "mouse"], False), (["dog", "mouse", "cat"], True)):
        trained.fit_pretrained(found, draw_variables(config), names)
        assert ("class 0: 'cat' then, 'dog' now" in caplog.text) == told
    caplog.clear()
    fresh = draw_variables(make_config(num_classes=4))
    trained.fit_pretrained(found, fresh, ["dog", "mouse", "cat", "horse"])
    assert "then" not in caplog.text  # its classifier starts afresh


def test_a_part_of_a_model_names_its_folder(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(checkpoint_files.CheckpointError, match="is a part of a model: give its folder"):
        trained.load_checkpoint(None, tmp_path / "model.safetensors")


def test_classes_are_named_by_the_checkpoint_or_the_data_set_or_numbered(data_dir, tmp_path):
    config = make_config({"dataset": "image_folder", "data_dir": str(data_dir)}, num_classes=3)
    assert classes_of(tmp_path / "a", config)[0] == ("floor", "wall", "lamp")
    meta = checkpoint_reading.describe_classes(["cat", "dog", "mouse"], [[1, 2, 3], [4, 5, 6], [7, 8, 9]], 255)
    names, palette = classes_of(tmp_path / "b", config, meta)  # whatever lies in data_dir today
    assert names == ("cat", "dog", "mouse") and palette[2].tolist() == [7, 8, 9] and palette.dtype == np.uint8
    names, palette = classes_of(tmp_path / "c", make_config())
    assert names[0] == "road" and palette[0].tolist() == [128, 64, 128]
    config = make_config({"dataset": "voc2012"}, num_classes=21)
    assert classes_of(tmp_path / "d", config)[0][:3] == ("background", "aeroplane", "bicycle")
    names, palette = classes_of(tmp_path / "e", make_config(num_classes=5))
    assert names[4] == "class 4" and np.array_equal(palette, viz.class_colors(5))


def test_a_checkpoint_copied_without_its_config_says_itself_what_it_is_or_what_is_missing(tmp_path):
    """Those of older versions do not hold their configuration."""
    config = make_config(num_classes=3)
    for name, meta in (("new", {"config": configuration.to_dict(config)}), ("old", None)):
        save_checkpoint(tmp_path / name, config, meta)
        (tmp_path / name / "checkpoints" / "best").rename(tmp_path / f"{name}_best")
    loaded = trained.load_checkpoint(None, tmp_path / "new_best")
    assert loaded.config.model.aspp_channels == 32 and len(loaded.class_names) == 3
    with pytest.raises(ValueError, match="model.aspp_channels: 32 then, 64 now"):
        trained.load_checkpoint(None, tmp_path / "new_best", {"model.aspp_channels": 64})
    configuration.write(make_config({"model.aspp_rates": (1, 2, 3, 4)}), tmp_path / "config.json")  # another run's
    assert trained.load_checkpoint(None, tmp_path / "new_best").config.model.aspp_rates == config.model.aspp_rates
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match="no config.json in .*old_best/0 or above it: give --config=FILE"):
        trained.load_checkpoint(None, tmp_path / "old_best")
    config.num_classes = None
    with pytest.raises(ValueError, match="no config.json in .*old_best/0 or above it.*--config.num_classes=N"):
        trained.load_checkpoint(config, tmp_path / "old_best")
    with pytest.raises(checkpoint_files.CheckpointError, match="old_best/0 is of another model"):
        trained.load_checkpoint(config, tmp_path / "old_best", {"num_classes": 3, "model.aspp_channels": 64})


def test_weights_of_a_pdparams_file_that_are_not_finite_are_refused(tmp_path):
    config, path = make_config(), tmp_path / "model.pdparams"
    variables = draw_variables(config)
    variables["params"]["decoder"]["classifier"]["bias"][2] = np.inf
    write_pdparams(path, config, variables)
    with pytest.raises(ValueError, match="model.pdparams: params/decoder/classifier/bias holds 1 values"):
        trained.load_checkpoint(config, path)
    with pytest.raises(ValueError, match="model.pdparams: params/decoder/classifier/bias holds 1 values"):
        trained.fit_pretrained(trained.read_pretrained(str(path), build_model(config)), draw_variables(config))
