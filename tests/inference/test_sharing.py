"""Models as folders, and on a server of this machine in place of Hugging Face's hub."""

import base64
import http.server
import json
import sys
import threading

import huggingface_hub
import jax
import numpy as np
import pytest
import safetensors.numpy
import yaml
from drawn import make_config, save_checkpoint
from etils import epath
from huggingface_hub import constants

from dlv3p_jax import Segmenter
from dlv3p_jax.data import viz
from dlv3p_jax.evaluation import metrics
from dlv3p_jax.weights import checkpoint_reading, model_folder, trained

SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """Keeps the files of one commit for each model, in `server.models`."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer = {"errors": [], "warnings": []}  # of the card's head
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            answer = {"url": f"{self.server.address}/{name}"}
        elif self.path.endswith("/preupload/main"):
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            answer = {"files": [file | {"shouldIgnore": False} for file in files]}
        elif self.path.endswith("/commit/main"):
            name = self.path.removeprefix("/api/models/").removesuffix("/commit/main")
            lines = [json.loads(line) for line in body.splitlines()]
            files = [line["value"] for line in lines if line["key"] == "file"]
            self.server.models[name] = {file["path"]: base64.b64decode(file["content"]) for file in files}
            answer = {"commitUrl": f"{self.server.address}/{name}/commit/{SHA}", "commitOid": SHA}
        self.answer(answer)

    def do_GET(self):
        *parts, last = self.path.partition("?")[0].strip("/").split("/")
        name = "/".join(parts[2:4] if parts[:2] == ["api", "models"] else parts[:2])
        files = self.server.models.get(name)
        if files is None:
            self.answer({"error": "not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        elif "tree" in parts:
            self.answer([{"type": "file", "path": path, "size": len(files[path]), "oid": path} for path in files])
        elif "resolve" in parts:
            self.answer(files[last], headers={"ETag": f'"{last}"', "X-Repo-Commit": SHA})
        else:
            self.answer({"id": name, "sha": SHA, "siblings": []})

    do_HEAD = do_GET

    def answer(self, body, status=200, headers=()):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (dict(headers) | {"Content-Length": len(data), "Content-Type": "application/json"}).items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *args):
        del args


def point_to(monkeypatch, address):
    """What HF_ENDPOINT does where huggingface_hub is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.models, server.address = {}, f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        point_to(monkeypatch, server.address)
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = make_config(
        {"data_dir": "/home/somebody/data", "pretrained": "/home/somebody/model", "eval.flip": True}, 3
    )
    meta = checkpoint_reading.describe_classes(["road", "a|b", "car"], viz.palette(3), 255, (0, 4095))
    save_checkpoint(folder, config, meta)
    matrix = np.array([[6, 2, 0], [1, 1, 0], [0, 0, 0]])
    report = metrics.to_json(metrics.summarize(matrix)) | {"class_names": ["road", "a|b", "car"], "num_pictures": 1}
    report |= dict(confusion_matrix=matrix.tolist(), checkpoint=f"{folder}/checkpoints/best/0", step=0, seconds=1.0)
    report |= dict(dataset="made", split="val", synthetic=True, model=None, absent_class="nan", eval_size=None)
    report |= dict(scales=[1.0], flip=False, window=None, stride=None, average="logits")
    (folder / "eval").mkdir()
    (folder / "eval" / "0.plain.json").write_text(json.dumps(report))
    return folder


def same(first, second) -> None:
    jax.tree.map(np.testing.assert_array_equal, first._trained.variables, second._trained.variables)
    assert (first.classes, first.picture_range) == (second.classes, second.picture_range)
    assert first.config.eval == second.config.eval and first.config.model == second.config.model
    np.testing.assert_array_equal(first.palette, second.palette)


def test_a_folder_holds_the_model_and_whatever_takes_a_checkpoint_takes_it(workdir, tmp_path):
    segmenter = Segmenter.from_checkpoint(workdir)
    segmenter.save_pretrained(tmp_path / "mine")
    same(Segmenter.from_pretrained(tmp_path / "mine"), segmenter)
    assert str(workdir).encode() not in (tmp_path / "mine" / "model.safetensors").read_bytes()
    arrays = safetensors.numpy.load_file(tmp_path / "mine" / "model.safetensors")  # as other programs read it
    assert arrays["params/decoder/classifier/kernel"].shape == (1, 1, 256, 3)
    assert "somebody" not in (tmp_path / "mine" / "config.json").read_text()
    assert not trained.read_pretrained(tmp_path / "mine", segmenter._trained.model).averaged
    assert checkpoint_reading.read_meta(checkpoint_reading.find(tmp_path / "mine"))["picture_range"] == [0, 4095]

    card = (tmp_path / "mine" / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    result = head["model-index"][0]["results"][0]
    assert result["dataset"]["name"] == "made" and result["metrics"][0]["value"] == pytest.approx((6 / 9 + 1 / 4) / 2)
    assert "synthetic" in card and "45.83" in card and "a\\|b" in card and 'from_pretrained("mine")' in card
    assert huggingface_hub.ModelCard(card).data.eval_results[0].metric_type == "mIoU"
    (tmp_path / "mine" / "README.md").write_text("my words")
    Segmenter.from_pretrained(str(tmp_path / "mine")).save_pretrained(tmp_path / "copy")
    segmenter.save_pretrained(tmp_path / "mine")
    assert {(tmp_path / name / "README.md").read_text() for name in ("mine", "copy")} == {"my words"}


def test_names_of_any_letters_and_a_home(workdir, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    segmenter = Segmenter.from_checkpoint(workdir)
    segmenter.save_pretrained(tmp_path / "straße 🚗")
    card = (tmp_path / "straße 🚗" / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["model-index"][0]["name"] == "straße 🚗"
    assert 'from_pretrained("straße 🚗")' in card
    same(Segmenter.from_pretrained("~/straße 🚗"), segmenter)


def test_folders_that_are_not_to_be_written_or_are_no_models(workdir, tmp_path):
    segmenter = Segmenter.from_checkpoint(workdir)
    with pytest.raises(ValueError, match="holds a run"):
        segmenter.save_pretrained(workdir)
    safetensors.numpy.save_file({"a": np.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged: another program wrote it"):
        checkpoint_reading.read_variables(epath.Path(tmp_path))
    segmenter.save_pretrained(tmp_path / "mine")
    data = (tmp_path / "mine" / "model.safetensors").read_bytes()
    (tmp_path / "mine" / "model.safetensors").write_bytes(data[:-1000])
    with pytest.raises(ValueError, match=r"mine/model\.safetensors is damaged"):
        Segmenter.from_pretrained(str(tmp_path / "mine"))


def test_a_model_goes_over_the_hub(workdir, hub, monkeypatch):
    segmenter = Segmenter.from_checkpoint(workdir)
    assert segmenter.push_to_hub("somebody/streets").endswith(f"/somebody/streets/commit/{SHA}")
    assert hub.models["somebody/streets"].keys() == {"model.safetensors", "config.json", "README.md"}
    assert b'from_pretrained("somebody/streets")' in hub.models["somebody/streets"]["README.md"]
    same(Segmenter.from_pretrained("somebody/streets"), segmenter)
    same(Segmenter.from_checkpoint("hf:somebody/streets"), segmenter)
    with pytest.raises(
        model_folder.HubError, match=r"somebody/else is no folder here, and cannot be fetched .*Repository Not Found"
    ):
        Segmenter.from_pretrained("somebody/else")
    hub.models["somebody/other"] = {"config.json": b"{}"}
    with pytest.raises(model_folder.HubError, match=r"no model\.safetensors"):
        Segmenter.from_pretrained("somebody/other")

    point_to(monkeypatch, "http://127.0.0.1:9")  # nobody listens
    same(Segmenter.from_pretrained("somebody/streets"), segmenter)  # it was fetched before
    with pytest.raises(
        model_folder.HubError, match=r"somebody/new is no folder here, and cannot be fetched.*give the folder"
    ):
        Segmenter.from_pretrained("somebody/new")
    with pytest.raises(model_folder.HubError, match="cannot be put"):
        segmenter.push_to_hub("somebody/new")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(model_folder.HubError, match=r"pip install 'dlv3p_jax\[hub\]'"):
        Segmenter.from_pretrained("somebody/streets")
