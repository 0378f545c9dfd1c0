"""The published models: their table, their files, and what a run is told that is named after one."""

import hashlib
import http.server
import importlib
import re
import subprocess
import threading

import pytest
import warm

from dlv3p_jax.weights import mmseg_models, published
from dlv3p_jax.weights.download import DownloadError


def load(name):
    return importlib.import_module(f"dlv3p_jax.configs.{name}").get_config()


def table(text, header):
    """The cells of the Markdown table that begins with `header`, row by row."""
    lines = text[text.index(f"| {header} |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def test_the_table_is_the_published_one(shared):
    text = (shared / "published.md").read_text()
    paths = {key: re.match(r"[\w./-]+", path).group() for key, path in table(text, "key")}
    assert f"All under `{published.ROOT}/`" in text
    rows = table(text, "config")
    assert [row[0].split()[0] for row in rows] == list(published.PUBLISHED)
    for name, backbone, crop, steps, *scores, key in rows:
        ours = published.PUBLISHED[name.split()[0]]
        assert backbone.split(",")[0].lower() == ours.backbone
        assert crop == "x".join(str(side) for side in reversed(ours.crop_size))
        assert int(steps.replace(",", "")) == ours.num_train_steps
        assert [float(score) for score in scores] == [ours.plain, ours.flip, ours.ms_flip_legacy, ours.ms_flip_logits]
        assert ours.path == paths.pop(key)
    assert paths == {f"backbone, {backbone}": archive for backbone, archive in published.IMAGENET.items()}


@pytest.mark.parametrize("name", published.PUBLISHED)
def test_configs_are_the_recipes_of_the_table(name):
    config, row = load(name), published.PUBLISHED[name]
    assert row[:5] == (
        *(config.dataset, config.model.backbone, config.batch_size),
        *(config.crop_size, config.num_train_steps),
    )


def test_names_are_those_of_models_and_of_backbones():
    theirs = (*mmseg_models.PUBLISHED, "resnet50_vd", "resnet101_vd", *mmseg_models.IMAGENET)
    assert published.names() == [*published.PUBLISHED, *theirs]
    assert all(map(published.is_name, published.names()))
    assert not any(map(published.is_name, ["resnet18_vd", "workdir/cityscapes_r50", "", "Cityscapes_R50"]))


def test_an_unknown_name_is_told_the_nearest_and_all(tmp_path):
    with pytest.raises(ValueError, match=r"'cityscape_r50' is .*did you mean cityscapes_r50\?.*voc_r101, resnet50_vd,"):
        published.fetch("cityscape_r50", tmp_path)
    with pytest.raises(ValueError, match="'x' is no published model or backbone: there are cityscapes_r50, "):
        published.fetch("x", tmp_path)


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """The address of a server of the files in tmp_path/mirror, and the paths that were asked for."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=tmp_path / "mirror")

        def log_message(self, *args):
            asked.append(self.path)

    monkeypatch.setenv("no_proxy", "*")
    for variable in ("DLV3P_CACHE", "DLV3P_ROOT"):
        monkeypatch.delenv(variable, raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


def place(path, size):
    """A file of `size` bytes, of which only the first and last take room on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(b"begin")
        file.truncate(size - 1)
        file.seek(size - 1)
        file.write(b"e")


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_a_model_is_fetched_once_from_the_mirror_into_the_cache(tmp_path, monkeypatch, mirror):
    root, asked = mirror
    below = published.PUBLISHED["voc_r50"].path
    place(tmp_path / "mirror" / below, 60_000_000)
    monkeypatch.setenv("DLV3P_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DLV3P_ROOT", f"{root}/")
    path = published.fetch("voc_r50")
    assert path == tmp_path / "cache" / below and digest(path) == digest(tmp_path / "mirror" / below)
    monkeypatch.setenv("DLV3P_ROOT", "http://127.0.0.1:1")
    assert published.fetch("voc_r50") == path and asked == [f"/{below}"]


def test_a_backbone_is_an_archive_in_the_home_by_default(tmp_path, monkeypatch, mirror):
    root, asked = mirror
    monkeypatch.setenv("HOME", str(tmp_path))
    place(tmp_path / ".cache/dlv3p_jax/resnet50_vd_ssld_v2.tar.gz", 90_000_000)  # put there by hand
    assert published.fetch("resnet50_vd", root=root) == tmp_path / ".cache/dlv3p_jax/resnet50_vd_ssld_v2.tar.gz"
    assert not asked


@pytest.mark.parametrize(("name", "size"), [("cityscapes_r50", 2000), ("resnet101_vd", 2000), ("voc_r50", 300_000_000)])
def test_what_has_not_about_the_size_of_the_file_is_refused(tmp_path, mirror, name, size):
    root, _ = mirror
    below = published.IMAGENET[name] if name in published.IMAGENET else published.PUBLISHED[name].path
    place(tmp_path / "mirror" / below, size)
    with pytest.raises(DownloadError, match=f"^{name}: {root}/{below} .* {size:,} bytes, but the file must have "):
        published.fetch(name, tmp_path / "cache", root)
    assert not (tmp_path / "cache" / below).exists()


def test_a_file_that_the_mirror_lacks_is_told_with_what_can_be_done(tmp_path, mirror):
    root, _ = mirror
    (tmp_path / "mirror").mkdir()
    with pytest.raises(DownloadError) as error:
        published.fetch("voc_r101", tmp_path / "cache", root)
    for words in ("voc_r101: ", "404", str(tmp_path / "cache" / published.PUBLISHED["voc_r101"].path), "DLV3P_ROOT"):
        assert words in str(error.value)


def test_nothing_heavy_is_imported():
    script = """
import sys
from dlv3p_jax.weights import download, published
print(*({"tensorflow", "clu", "jax", "flax", "numpy"} & {name.partition(".")[0] for name in sys.modules}))
"""
    process = subprocess.run([*warm.ANEW, "-c", script], capture_output=True, text=True)
    assert (process.returncode, process.stdout.strip()) == (0, ""), process.stderr


@pytest.mark.parametrize("name", published.PUBLISHED)
def test_a_published_config_is_told_its_imagenet_weights_and_nothing_else(name):
    config = load(name)
    (note,) = published.recipe_notes(name, config)
    backbone = "resnet101_vd" if "r101" in name else "resnet50_vd"
    archive = "resnet101_vd_ssld.tar.gz" if "r101" in name else "resnet50_vd_ssld_v2.tar.gz"
    assert f"https://bj.bcebos.com/paddleseg/dygraph/{archive}" in note and "config.pretrained is None" in note
    assert f"--config.pretrained={backbone} " in note
    config.pretrained = backbone
    assert published.recipe_notes(name, config) == []


def test_another_batch_is_told_with_both_numbers():
    config = load("cityscapes_r50")
    config.pretrained, config.batch_size = "resnet50_vd", 2
    (note,) = published.recipe_notes("cityscapes_r50", config)
    assert "published with global batch 8, yours 2" in note


def test_other_data_backbones_and_configs_are_told_nothing():
    assert published.recipe_notes("quickstart", load("quickstart")) == []
    config = load("cityscapes_r50")
    config.model.backbone = "resnet18_vd"
    assert published.recipe_notes("cityscapes_r50", config) == []
    config = load("cityscapes_r50")
    config.dataset = "image_folder"
    assert published.recipe_notes("cityscapes_r50", config) == []
