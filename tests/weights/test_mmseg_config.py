"""MMSegmentation's configs: what is taken of them, beside a file and in it, and what is refused."""

import pytest

from dlv3p_jax.weights import foreign, mmseg, mmseg_config, pth, trained

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
