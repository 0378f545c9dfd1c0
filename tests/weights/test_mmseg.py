"""MMSegmentation's models: names and axes of their parameters, what their files say, the published ones."""

import functools
import http.server
import importlib.util
import json
import pathlib
import runpy
import threading

import drawn
import jax
import numpy as np
import pytest

from dlv3p_jax.configs import common
from dlv3p_jax.configs import mmseg as recipes
from dlv3p_jax.models import build_model, variable_shapes
from dlv3p_jax.weights import (
    checkpoint_reading,
    foreign,
    mmseg,
    mmseg_models,
    paddle,
    pdparams,
    pth,
    published,
    trained,
)


def paddle_like(**settings):
    config = common.get_config()
    config.num_classes = 19
    config.model.update(settings)
    return build_model(config)


def flat(variables):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree.leaves_with_path(variables)
    }


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_a_backbone_alone_is_taken_whole_under_either_name(make_state, prefix):
    state = {name: value for name, value in make_state("r50-d8_c19").items() if name.startswith("backbone.")}
    classifier = {"fc.weight": np.ones((1000, 2048), np.float32), "head.fc.bias": np.ones(1000, np.float32)}
    given = {prefix + name.removeprefix("backbone."): value for name, value in state.items()} | classifier
    variables, dropped = mmseg.convert_backbone(given, paddle_like())
    assert dropped == list(classifier)
    leaves = flat(variables)
    assert len(leaves) == len([name for name in state if not name.endswith("num_batches_tracked")])
    for path, name in {
        "params/backbone/stem_conv2/conv/kernel": "stem.3.weight",
        "params/backbone/stage3_block2/conv2/conv/kernel": "layer3.1.conv2.weight",
        "params/backbone/stage1_block1/shortcut/conv/kernel": "layer1.0.downsample.0.weight",
    }.items():
        np.testing.assert_array_equal(leaves[path], np.einsum("oihw->hwio", state[f"backbone.{name}"]))
    for leaf, name in {
        "params/{}/scale": "weight",
        "params/{}/bias": "bias",
        "batch_stats/{}/mean": "running_mean",
        "batch_stats/{}/var": "running_var",
    }.items():
        ours = leaves[leaf.format("backbone/stage4_block1/shortcut/batch_norm")]
        np.testing.assert_array_equal(ours, state[f"backbone.layer4.0.downsample.1.{name}"])


def test_a_network_that_mmsegmentation_does_not_have_is_refused(make_state):
    with pytest.raises(mmseg.ConversionError, match="no name for .*params/aspp/branch1/conv/bias"):
        mmseg.convert(make_state("r50-d8_c19"), paddle_like())


STATES = {
    "r18-d8_c19": ("r18", {}),
    "r18b-d8_c19": ("r18b", {}),
    "r50-d8_c150": ("r50", {"num_classes": 150}),
}


def make_model(backbone, settings=()):
    config = common.get_config()
    config.num_classes = 19
    config.model.update(recipes.network(backbone))
    config.update_from_flattened_dict(dict(settings))
    return build_model(config), config


@pytest.mark.parametrize("name", STATES)
def test_a_whole_model_comes_back_with_the_same_names_order_and_bits(make_state, name):
    backbone, settings = STATES[name]
    state = make_state(name)
    model, config = make_model(backbone, settings)
    described = common.get_config()
    described.update_from_flattened_dict(mmseg.describe(state, "model.pth"))
    assert described.to_dict() == config.to_dict()
    back = mmseg.revert(mmseg.convert(state, model), model)
    assert list(back) == list(state)
    for key, value in back.items():
        assert (value.dtype, value.shape) == (state[key].dtype, state[key].shape), key
        zeros = key.endswith("num_batches_tracked")
        np.testing.assert_array_equal(value, np.zeros_like(value) if zeros else state[key], err_msg=key)
    plain = model.clone(auxiliary_head=None)
    for key, value in mmseg.revert(mmseg.convert(state, plain), plain).items():
        zeros = key.startswith("auxiliary_head.") or key.endswith("num_batches_tracked")
        np.testing.assert_array_equal(value, np.zeros_like(state[key]) if zeros else state[key], err_msg=key)
    without = mmseg.revert(mmseg.convert(state, model), model, auxiliary_head=False)
    assert list(without) == [key for key in state if not key.startswith("auxiliary_head.")]


def test_a_backbone_of_another_kind_is_told(make_state):
    state = {name: value for name, value in make_state("r18b-d8_c19").items() if name.startswith("backbone.")}
    with pytest.raises(mmseg.ConversionError, match="(?s)missing.*stem.0.weight"):
        mmseg.convert_backbone(state, make_model("r18")[0])
    mmseg.convert_backbone(state, make_model("r18b")[0])


def test_weights_that_would_compute_something_else_are_refused_with_the_keys_to_give(make_state, tmp_path):
    """Names and shapes agree, but shortcuts stride in another way, or branches lie in another order."""
    state = make_state("r18b-d8_c19")
    backbone = {name: value for name, value in state.items() if name.startswith("backbone.")}
    pth.save_pth(backbone, tmp_path / "resnet18.pth", {})
    pth.save_pth(state, tmp_path / "whole.pth", {})
    (model, config), (averaging, _) = make_model("r18b"), make_model("r18b", {"model.avg_down": True})
    other, _ = make_model("r18b", {"model.aspp_pooling_first": False, "model.head_depthwise_relu": False})
    checkpoint_reading.write_variables(tmp_path / "converted", mmseg.convert(state, model), config, {})
    for name, wrong, keys in (
        ("resnet18.pth", averaging, "--config.model.avg_down=False$"),
        ("whole.pth", averaging, "--config.model.avg_down=False$"),
        ("whole.pth", other, "aspp_pooling_first=True --config.model.head_depthwise_relu=True$"),
        ("converted", averaging, "--config.model.avg_down=False$"),
    ):
        with pytest.raises(ValueError, match=f"{name}: [^\n]* computes something else: give .*{keys}"):
            trained.read_pretrained(tmp_path / name, wrong)
        trained.read_pretrained(tmp_path / name, model)
    trained.read_pretrained(tmp_path / "resnet18.pth", other)  # whose head shows nowhere in a backbone
    small = {"backbone": "resnet18_vd", "multi_grid": (1, 1)}
    theirs, striding = paddle_like(**small), paddle_like(**small, avg_down=False)
    pdparams.save_pdparams(paddle.revert(drawn.draw_variables_of(theirs), theirs), tmp_path / "model.pdparams")
    with pytest.raises(ValueError, match="model.pdparams: .*--config.model.avg_down=True$"):
        trained.read_pretrained(tmp_path / "model.pdparams", striding)
    for names, its_own in ((mmseg, averaging), (paddle, striding)):
        with pytest.raises(ValueError, match="has no such network: .*'avg_down'"):
            names.revert(variable_shapes(its_own), its_own)


def test_the_models_are_those_that_are_published(shared):
    """Against zoo.json; where its configs and the names of the files differ, the files' names count."""
    zoo = json.loads((shared / "parity" / "mmseg" / "zoo.json").read_text())
    assert len(zoo) == len(mmseg_models.PUBLISHED) == 43
    for theirs, (name, ours) in zip(zoo, mmseg_models.PUBLISHED.items(), strict=True):
        assert f"{mmseg_models.ROOT}/{ours.path}" == theirs["weights"]
        assert (ours.plain, ours.ms_flip) == (theirs["mIoU"], theirs["mIoU_ms_flip"])
        assert list(ours.crop_size) == theirs["crop_size_hw"]
        if name not in ("mmseg/r18b_cityscapes_769_80k", "mmseg/r101_ade20k_80k"):  # as their configs' names say
            assert ours.num_train_steps == theirs["max_iters"]
        config = mmseg_models.config_of(name)
        config.lock()
        assert config.num_classes == theirs["num_classes"]
        assert config.batch_size == 4 * theirs["batch_size_per_gpu"]
        model = config.model
        if "_pascal_context_" not in name or "_59_" in name:  # two R-50 in the list whose files are of R-101
            assert model.backbone == f"resnet{theirs['depth']}_vd"
        assert (model.stem == "deep") == (theirs["backbone"] == "ResNetV1c")
        assert (model.aspp_channels, model.decoder_channels) == (theirs["channels"], theirs["channels"])
        assert model.low_level_channels == theirs["c1_channels"]
        assert (model.aspp_rates, model.align_corners) == (tuple(theirs["aspp_dilations"]), theirs["align_corners"])
        assert (model.mean, model.std) == (tuple(theirs["mean"]), tuple(theirs["std"]))
        assert model.contract_dilation == theirs["contract_dilation"]
        assert model.output_stride == 4 * np.prod(theirs["strides"])
        assert (model.multi_grid_kind == "dilations") == (theirs["multi_grid"] is not None)
        if theirs["multi_grid"]:
            assert model.multi_grid == tuple(theirs["multi_grid"])
        assert list(config.eval.resize) == theirs["test_resize_wh"][::-1]
        assert config.eval.align_corners == theirs["align_corners"]
        assert config.eval.window == (theirs["test_crop"] and tuple(theirs["test_crop"]))
        assert config.eval.stride == (theirs["test_stride"] and tuple(theirs["test_stride"]))
        if theirs["optimizer"]["type"] == "SGD":
            optimizer = (config.learning_rate, config.momentum, config.weight_decay)
            assert optimizer == tuple(theirs["optimizer"][key] for key in ("lr", "momentum", "weight_decay"))
        build_model(config)


def test_names_behind_a_word_for_all_are_found_and_those_of_nothing_known_are_named(make_state, tmp_path):
    state = make_state("r18-d8_c19")
    pth.save_pth({f"model.module.{name}": value for name, value in state.items()}, tmp_path / "a.pth", {})
    assert list(foreign.read(tmp_path / "a.pth").state) == list(state)
    pth.save_pth(
        {name.replace("decode_head.", "head."): state[name] for name in list(state)[-9:]}, tmp_path / "b.pth", {}
    )
    with pytest.raises(ValueError, match="b.pth holds neither a DeepLabV3[+] nor a ResNet, by the names"):
        foreign.read(tmp_path / "b.pth")
    kept = {name: value[:1] if "conv_seg" in name else value for name, value in state.items()}
    pth.save_pth(kept, tmp_path / "c.pth", {})
    with pytest.raises(ValueError, match="c.pth: its classifier has one output, whose sigmoid"):
        trained.load_checkpoint(None, tmp_path / "c.pth")


def test_a_published_name_is_fetched_and_loaded(shared, make_state, tmp_path, monkeypatch, caplog):
    """From a folder in place of the servers: the files' addresses are those of the published ones.

    They are as old as PyTorch's older format, and in it, where PyTorch is installed.
    """
    name = "mmseg/r18_cityscapes_80k"
    save = functools.partial(pth.save_pth, meta={})
    if importlib.util.find_spec("torch") is not None:
        write = runpy.run_path(str(shared / "parity" / "mmseg" / "weights.py"))["save_pth"]
        save = functools.partial(write, legacy=True)

    def put(path, state):
        (tmp_path / "mirror" / path).parent.mkdir(parents=True, exist_ok=True)
        save(state, tmp_path / "mirror" / path)

    put(mmseg_models.PUBLISHED[name].path, make_state("r18-d8_c19"))
    backbones = {"resnet50_v1c": "r50", "resnet18": "r18b"}
    for backbone, network in backbones.items():  # as mmpretrain's and torchvision's, with the classifier of ImageNet
        state = make_state(f"{network}-d8_c19")
        state = {name[9:]: value for name, value in state.items() if name.startswith("backbone.")}
        put(mmseg_models.IMAGENET[backbone][1], state | {"fc.bias": np.zeros(1000, np.float32)})
    monkeypatch.setenv("DLV3P_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "mirror")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("DLV3P_ROOT", f"http://127.0.0.1:{server.server_port}")
        model = trained.load_checkpoint(None, name)
        for backbone, network in backbones.items():
            to_train = make_model(network)[0]
            shapes = variable_shapes(to_train)
            loaded = trained.fit_pretrained(trained.read_pretrained(backbone, to_train), shapes)
            expected = mmseg.convert(make_state(f"{network}-d8_c19"), to_train)
            jax.tree.map(np.testing.assert_array_equal, loaded["params"]["backbone"], expected["params"]["backbone"])
            assert loaded["params"]["decoder"] == shapes["params"]["decoder"]  # afresh
            with pytest.raises(ValueError, match=r"\.pth: .*give --config.model.avg_down=False"):
                trained.read_pretrained(backbone, paddle_like())
        server.shutdown()
    assert model.config.to_dict() == mmseg_models.config_of(name).to_dict()
    assert model.class_names[0] == "road"
    expected = mmseg.convert(make_state("r18-d8_c19"), model.model)
    jax.tree.map(np.testing.assert_array_equal, model.variables, expected)
    assert "SHA-256" in caplog.text  # a made file is not the published one, which its name has 8 digits of


def test_the_page_has_all_models_with_their_published_figures():
    page = (pathlib.Path(__file__).resolve().parents[2] / "docs" / "models.md").read_text()
    rows = {cells[2].strip(" `"): cells[6:8] for line in page.splitlines() if len(cells := line.split("|")) == 9}
    for name, model in {**published.PUBLISHED, **mmseg_models.PUBLISHED}.items():
        best = model.ms_flip if name in mmseg_models.PUBLISHED else model.ms_flip_logits
        figures = [f"{model.plain:.2f}", "" if best is None else f"{best:.2f}"]
        assert [cell.strip() for cell in rows.pop(name)] == figures
    assert len(rows) == 2  # the head and the line below it


def test_paddlesegs_files_have_no_auxiliary_head_either_way():
    config = common.get_config()
    config.num_classes = 3
    config.model.update(backbone="resnet18_vd", multi_grid=(1, 1))
    plain = build_model(config)
    config.model.auxiliary_head = True
    model = build_model(config)
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), variable_shapes(model))
    state = paddle.revert(variables, model)
    assert list(state) == list(paddle.revert(variables, plain))
    found = foreign.convert(foreign.Foreign("a.pdparams", paddle, state, {}), model, allow_new_head=True)
    assert found["params"].keys() == variables["params"].keys() - {"auxiliary_head"}
