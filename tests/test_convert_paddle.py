"""Names and axes of PaddleSeg's parameters, and the command that converts its files and writes them."""

import pathlib
import subprocess
import sys
import tarfile

import jax
import numpy as np
import pytest
import recordings
import trained_by_paddleseg
from drawn import draw_variables_of

from dlv3p_jax import convert_paddle
from dlv3p_jax.configs import common
from dlv3p_jax.convert_paddle import ConversionError, convert, load_pdparams, revert, save_pdparams
from dlv3p_jax.models import build_model
from dlv3p_jax.runtime import configuration
from dlv3p_jax.weights import checkpoint_files, trained


def make_model(backbone="resnet18_vd", num_classes=2):
    config = make_config(backbone)
    config.num_classes = num_classes
    return build_model(config)


def make_config(backbone="resnet18_vd", dataset="image_folder"):
    config = common.get_config()
    config.dataset, config.model.backbone = dataset, backbone
    if backbone == "resnet18_vd":
        config.model.multi_grid = (1, 1)
    return config


@pytest.fixture
def state(shared):
    return dict(recordings.recorded_state(shared, "resnet18_vd", 2))


@pytest.mark.parametrize(("backbone", "num_classes"), recordings.STATES)
def test_round_trip_gives_the_same_names_order_and_bits(shared, backbone, num_classes):
    recordings.hold(recordings.weights(shared, backbone, num_classes))


def test_variables_have_the_tree_and_shapes_of_the_model(state):
    model = make_model()
    expected = jax.eval_shape(
        lambda rng: model.init(rng, np.zeros((1, 8, 8, 3), np.float32), train=False), jax.random.key(0)
    )
    variables = convert(state, model)
    assert jax.tree.structure(variables) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(variables), jax.tree.leaves(expected), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)


def test_paddles_own_entry_is_ignored(state):
    state["StructuredToParameterName@@"] = {"backbone.conv1_1._conv.weight": "param_0"}
    convert(state, make_model())


def test_every_wrong_name_is_listed_at_once(state):
    del state["backbone.bb_1_0.conv0._conv.weight"]
    del state["head.decoder.conv.bias"]
    state["head.aspp.pointwise_conv.weight"] = np.zeros((4, 5), np.float32)
    state["backbone.conv1_1._conv.weight"] = np.zeros((32, 4, 3, 3), np.float32)
    with pytest.raises(ConversionError) as error:
        convert(state, make_model())
    message = str(error.value)
    missing, rest = message.split("1 unexpected")
    unexpected, misshaped = rest.split("1 mis-shaped")
    assert "2 missing" in missing
    assert "backbone.bb_1_0.conv0._conv.weight (128, 64, 3, 3)" in missing
    assert "head.decoder.conv.bias (2,)" in missing
    assert "head.aspp.pointwise_conv.weight (4, 5)" in unexpected
    assert "backbone.conv1_1._conv.weight has (32, 4, 3, 3), the model (32, 3, 3, 3)" in misshaped
    assert issubclass(ConversionError, ValueError)


def test_weights_of_another_network_are_refused(state):
    with pytest.raises(ConversionError, match="head.decoder.conv.weight has"):
        convert(state, make_model(num_classes=19))
    with pytest.raises(ConversionError, match="backbone.bb_0_0.conv2._conv.weight"):
        convert(state, make_model("resnet50_vd", 2))
    variables = convert(state, make_model())
    with pytest.raises(ConversionError, match="mis-shaped"):
        revert(variables, make_model(num_classes=19))


def test_works_without_tensorflow():
    code = (
        "import sys\n"
        "for name in ('tensorflow', 'tensorflow_datasets', 'clu'): sys.modules[name] = None\n"
        "import dlv3p_jax.models, dlv3p_jax.convert_paddle"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Files and folders.


def assert_same_state(actual, expected):
    assert list(actual) == list(expected)
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype
        np.testing.assert_array_equal(actual[name].view(np.uint32), value.view(np.uint32), err_msg=name)


def backbone_of(state):
    return {name.removeprefix("backbone."): value for name, value in state.items() if name.startswith("backbone.")}


def run(*arguments):
    command = [sys.executable, "-m", "dlv3p_jax.convert_paddle", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


ROOT = pathlib.Path(__file__).resolve().parents[1]
NETWORK = [
    *("--config=configs/image_folder.py", "--config.model.backbone=resnet18_vd", "--config.model.multi_grid=(1, 1)")
]


@pytest.mark.parametrize("layout", [2, 3])
def test_the_commands_convert_a_file_and_give_it_back_bit_for_bit(shared, state, tmp_path, layout):
    script = shared / "parity" / "weights.py"
    names = shared / "parity" / "deeplabv3p_resnet18_vd_c2.json"
    model = tmp_path / "model.pdparams"
    subprocess.run([sys.executable, script, names, model, f"--layout={layout}"], check=True)
    result = run(*NETWORK, f"--pdparams={model}", f"--output={tmp_path / 'model'}")
    assert result.returncode == 0, result.stderr
    assert "resnet18_vd DeepLabV3+, 2 classes" in result.stdout

    config = configuration.read(tmp_path / "model" / "config.json")
    assert (config.num_classes, config.model.backbone) == (2, "resnet18_vd")
    result = run("--reverse", f"--checkpoint={tmp_path / 'model'}", f"--output={tmp_path / 'back.pdparams'}")
    assert result.returncode == 0, result.stderr
    assert_same_state(load_pdparams(tmp_path / "back.pdparams"), state)


def test_an_archive_with_a_backbone_and_its_classifier_becomes_what_training_starts_from(state, tmp_path, caplog):
    classifier = {"fc.weight": np.ones((512, 1000), np.float32), "fc.bias": np.ones(1000, np.float32)}
    save_pdparams(backbone_of(state) | classifier, tmp_path / "model.pdparams")
    archive = tmp_path / "resnet18.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(tmp_path / "model.pdparams", "resnet18/model.pdparams")
    config = make_config()
    with caplog.at_level("INFO"):
        convert_paddle.write_checkpoint(config, archive, str(tmp_path / "backbone"))
    assert "which is left out: fc.weight, fc.bias" in caplog.text
    assert configuration.read(tmp_path / "backbone" / "config.json").num_classes is None

    model = make_model(num_classes=5)
    fresh = draw_variables_of(model)
    for source in (tmp_path / "backbone", archive):
        with caplog.at_level("INFO"):
            variables = trained.fit_pretrained(trained.read_pretrained(str(source), model), fresh)
        assert f"Loaded 115 of 200 arrays from {source}" in caplog.text
        back = revert(variables, model)
        expected = revert(fresh, model) | {f"backbone.{k}": v for k, v in backbone_of(state).items()}
        assert_same_state(back, {name: expected[name] for name in back})
    with pytest.raises(checkpoint_files.CheckpointError, match="holds only a backbone: to train from it"):
        trained.load_checkpoint(make_config(), tmp_path / "backbone", {"num_classes": 5})


def test_training_starts_from_a_model_of_other_classes(state, tmp_path, caplog):
    save_pdparams(state, tmp_path / "model.pdparams")
    model = make_model(num_classes=3)
    fresh = draw_variables_of(model)
    with caplog.at_level("INFO"):
        variables = trained.fit_pretrained(trained.read_pretrained(str(tmp_path / "model.pdparams"), model), fresh)
    assert "initialised afresh: params/decoder/classifier/bias, params/decoder/classifier/kernel" in caplog.text
    back = revert(variables, model)
    for name, value in back.items():
        expected = fresh["params"]["decoder"]["classifier"] if "head.decoder.conv." in name else None
        if expected is None:
            np.testing.assert_array_equal(value, state[name], err_msg=name)
        elif name.endswith("bias"):
            np.testing.assert_array_equal(value, expected["bias"])


def test_a_published_name_is_taken_from_the_cache(state, tmp_path, monkeypatch, caplog):
    """A made file under a published name: a name of another file would be refused for its size."""
    monkeypatch.setenv("DLV3P_CACHE", str(tmp_path))
    file = tmp_path / "cache.pdparams"
    save_pdparams(state, file)
    asked = []
    monkeypatch.setattr(trained.published, "fetch", lambda name: asked.append(name) or file)
    model = make_model()
    variables = trained.fit_pretrained(trained.read_pretrained("cityscapes_r50", model), draw_variables_of(model))
    assert asked == ["cityscapes_r50"]
    assert_same_state(revert(variables, model), state)


def test_what_cannot_be_converted_is_said_in_one_message(state, tmp_path):
    file = tmp_path / "model.pdparams"
    del state["head.decoder.conv.bias"]
    save_pdparams(state | {"head.other.weight": np.zeros(3, np.float32)}, file)
    with pytest.raises(ConversionError, match=r"(?s)model.pdparams: .*1 missing.*conv.bias.*1 unexpected.*head.other"):
        convert_paddle.write_checkpoint(make_config(), file, str(tmp_path / "out"))
    config = make_config()
    config.num_classes = 19
    with pytest.raises(ConversionError, match=r"(?s)1 missing.*1 unexpected.*1 mis-shaped"):
        convert_paddle.write_checkpoint(config, file, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(state, tmp_path):
    file = tmp_path / "model.pdparams"
    save_pdparams(state, file)
    (tmp_path / "out").mkdir()
    convert_paddle.write_checkpoint(make_config(), file, str(tmp_path / "out"))
    with pytest.raises(checkpoint_files.CheckpointError, match="out exists and is not empty"):
        convert_paddle.write_checkpoint(make_config(), file, str(tmp_path / "out"))
    with pytest.raises(ValueError, match="model.pdparams exists"):
        convert_paddle.write_pdparams(None, tmp_path / "out", file)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pdparams", "out"]


def test_a_model_that_paddleseg_trained_scores_here_what_it_scored_there(shared, tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")  # real pictures, on which programs that are compiled quickly take longer
    trained_by_paddleseg.prepare(shared, tmp_path)
    # The two with scales take three times as long; docs/equivalence.md has all four, and test_evaluate.py their
    # logits on another network.
    recordings.hold(trained_by_paddleseg.measure(shared, tmp_path, ("plain", "flip")))
