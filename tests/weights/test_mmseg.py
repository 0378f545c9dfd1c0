"""MMSegmentation's models: names and axes of their parameters, what their files and configs say, the published ones."""

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
    mmseg_config,
    mmseg_models,
    paddle,
    pdparams,
    pth,
    published,
    trained,
)


@pytest.fixture(scope="module")
def make_state(shared):
    """Arrays by MMSegmentation's names, of one of its models: r50-d8_c19 for one."""
    make = runpy.run_path(str(shared / "parity" / "mmseg" / "weights.py"))["make_state"]
    return lambda name: make(shared / "parity" / "mmseg" / f"deeplabv3plus_{name}.json")


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


CONFIG = """
_base_ = './x.py'
norm_cfg = dict(type='SyncBN', requires_grad=True)
import os
crop_size = os.system('touch SENTINEL')
model = dict(
    type='EncoderDecoder',
    backbone=dict(type='ResNetV1c', depth=101, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), multi_grid=(1, 2, 4),
                  contract_dilation=True, norm_cfg=norm_cfg),
    decode_head=dict(type='DepthwiseSeparableASPPHead', dilations=(1, 6, 12, 18), align_corners=True,
                     dropout_ratio=0.1, channels=512, num_classes=19),
    test_cfg=dict(mode='slide', crop_size=(769, 769), stride=(513, 513)))
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(2049, 1025), keep_ratio=True)]
"""


def test_a_config_is_read_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert mmseg_config.settings(CONFIG) == {
        "model.output_stride": 16,
        "model.contract_dilation": True,
        "model.multi_grid": (1, 2, 4),
        "model.multi_grid_kind": "dilations",
        "model.align_corners": True,
        "model.aspp_rates": (1, 6, 12, 18),
        "model.dropout": 0.1,
        "num_classes": 19,
        "eval.window": (769, 769),
        "eval.stride": (513, 513),
        "eval.align_corners": True,
        "eval.resize": (1025, 2049),
    }
    assert list(tmp_path.iterdir()) == []
    for text, message in {
        "model = (": "no Python",
        "(" * 100_000: "no Python",
        "x" * 2_000_000: "is no config",
        "_base_ = 'x.py'": "give the config of the work_dir",
        "model = dict(decode_head=dict(type='FCNHead'))": "'FCNHead'",
        "'configs/mine.py'": "it has no model with a decode_head",
        CONFIG.replace("strides=(1, 2, 2, 1)", "strides=[dict()]"): "strides",
        "with read_base():\n    from .x import *\nmodel = dict(test_cfg=dict())": "give the config of the work_dir",
        "_base_ = 'x.py'\nmodel = dict(decode_head=dict(num_classes=3))": "give the config of the work_dir",
        CONFIG.replace("(1, 2, 2, 1)", "(1, 2, 2, 2)"): "strides",
        CONFIG.replace("(1, 1, 1, 2)", "(1, 1, 1, 1)"): r"the dilations \(1, 1, 1, 1\) with the strides",
        CONFIG.replace("ResNetV1c", "ResNetV1d"): "'ResNetV1d': what converts are ResNet and ResNetV1c",
        CONFIG.replace("depth=101", "depth=101, style='caffe'"): "style='caffe'",
        CONFIG.replace("requires_grad=True", "eps=1e-3"): "backbone has norm_cfg={'type': 'SyncBN', 'eps': 0.001}",
        CONFIG.replace("norm_cfg=norm_cfg", "norm_cfg=dict(type='GN')"): "what converts is BatchNorm",
        f"{CONFIG}data_preprocessor = dict(mean=[1, 2, 3])": "sees BGR",
        f"{CONFIG}img_norm_cfg = dict(mean=[1, 2, 3], to_rgb=False)": "sees BGR",
        f"{CONFIG}data_preprocessor = dict(mean=5, bgr_to_rgb=True)": "mean of colours is 5: give three numbers",
    }.items():
        with pytest.raises(ValueError, match=message):
            mmseg_config.settings(text)


def test_what_arrays_do_not_show_is_that_of_mmsegmentation_where_a_config_leaves_it_out():
    text = "model = dict(backbone=dict(type='ResNet', strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)), decode_head=HEAD)"
    found = mmseg_config.settings(text.replace("HEAD", "dict(type='DepthwiseSeparableASPPHead')"))
    assert (found["model.aspp_rates"], found["model.dropout"], found["model.align_corners"]) == (
        (1, 6, 12, 18),
        0.1,
        False,
    )
    assert not {"model.mean", "model.std", "eval.resize"} & set(found)
    for kind in (
        "'mmseg.models.DepthwiseSeparableASPPHead'",
        "DepthwiseSeparableASPPHead",
    ):  # of MMEngine's newer configs
        assert mmseg_config.settings(text.replace("HEAD", f"dict(type={kind})")) == found


@pytest.mark.parametrize(
    "normalization",
    [
        "data_preprocessor = dict(type='SegDataPreProcessor', mean=[100, 90.5, 80], std=[1, 2, 3], bgr_to_rgb=True)",
        "img_norm_cfg = dict(mean=[100, 90.5, 80], std=[1, 2, 3], to_rgb=True)",
        "norm = dict(mean=[100, 90.5, 80], std=[1, 2, 3])\ntest_pipeline = [dict(type='MultiScaleFlipAug', "
        "img_scale=(2049, 1025), transforms=[dict(type='Resize', keep_ratio=True), dict(type='Normalize', **norm)])]",
    ],
)
def test_colours_are_normalised_as_the_config_says(normalization):
    found = mmseg_config.settings(f"{CONFIG}\n{normalization}")
    assert (found["model.mean"], found["model.std"]) == ((100, 90.5, 80), (1, 2, 3))
    assert found["eval.resize"] == (1025, 2049)


def test_a_preprocessor_without_a_mean_leaves_colours_as_they_are():
    found = mmseg_config.settings(f"{CONFIG}\ndata_preprocessor = dict(type='SegDataPreProcessor', bgr_to_rgb=True)")
    assert (found["model.mean"], found["model.std"]) == ((0, 0, 0), (1, 1, 1))


def test_what_a_test_does_otherwise_is_told(caplog):
    """Without keep_ratio, whose default is False in version 1, every picture gets one size, whatever its shape."""
    for text in (CONFIG.replace("keep_ratio=True", "keep_ratio=False"), CONFIG.replace(", keep_ratio=True", "")):
        assert "eval.resize" not in mmseg_config.settings(text)
        assert "makes every picture (2049, 1025)" in caplog.text
        caplog.clear()
    mmseg_config.settings(CONFIG.replace("'LoadImageFromFile'", "'ResizeToMultiple'"))
    assert "steps that are not done here: ResizeToMultiple" in caplog.text


def test_a_config_of_another_network_or_of_other_classes_is_refused(make_state, tmp_path):
    text = CONFIG.replace("(1, 2, 2, 1)", "(1, 2, 2, 2)")
    pth.save_pth(make_state("r18-d8_c19"), tmp_path / "a.pth", {"cfg": text})
    with pytest.raises(ValueError, match="the config in .*a.pth: its backbone has the strides .* --config=FILE"):
        trained.load_checkpoint(None, tmp_path / "a.pth")
    (tmp_path / "b.py").write_text(CONFIG.replace("num_classes=19", "num_classes=5"))
    with pytest.raises(ValueError, match="b.py: num_classes=5, but .*a.pth has 19"):
        foreign.describe(foreign.read(tmp_path / "a.pth"), tmp_path / "b.py")
    (tmp_path / "c.py").write_text("_base_ = 'x.py'")
    with pytest.raises(ValueError, match="c.py: it stands on other files"):
        foreign.describe(foreign.read(tmp_path / "a.pth"), tmp_path / "c.py")


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


def test_a_file_says_its_network_its_classes_and_its_colours(make_state, tmp_path):
    classes = tuple(f"thing {number}" for number in range(19))
    palette = [[number, 1, 2] for number in range(19)]
    text = CONFIG.replace("(1, 2, 2, 1)", "(1, 2, 1, 1)").replace("(1, 1, 1, 2)", "(1, 1, 2, 4)")
    text = text.replace("multi_grid=(1, 2, 4),", "")
    for meta in (
        {"CLASSES": classes, "PALETTE": palette, "config": text},
        {"dataset_meta": {"classes": classes, "palette": palette}, "cfg": text},
    ):
        pth.save_pth(make_state("r18-d8_c19"), tmp_path / "iter_80000.pth", meta)
        model = trained.load_checkpoint(None, tmp_path / "iter_80000.pth")
        assert (model.class_names, model.palette.tolist()) == (classes, palette)
        assert model.config.model.align_corners and model.config.model.aspp_rates == (1, 6, 12, 18)
        assert model.config.model.output_stride == 8 and model.config.eval.window == (769, 769)
    assert mmseg.classes_of({"CLASSES": ("a",), "PALETTE": [[0, 0, 256]]}) is None
    assert mmseg.classes_of({"CLASSES": ("a", "b"), "PALETTE": [[0, 0, 0]]}) is None


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
