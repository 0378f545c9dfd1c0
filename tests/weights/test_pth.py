"""PyTorch's checkpoints: what torch.save writes in both formats is read, and what attackers write does nothing."""

import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zipfile

import damaged
import numpy as np
import pytest
from attacks import NEW, RUNNING, aimed_at, call, text

from dlv3p_jax.weights.pth import PthError, is_pth, load_pth, save_pth

META = {"CLASSES": ("road", "car"), "PALETTE": [[0, 0, 0], [255, 1, 2]], "config": "model = dict()\n"}
VALUES = np.arange(12, dtype="<f4")


# A file by hand, of parts that attacks can replace.
def number(value):
    return b"\x8a\x08" + struct.pack("<q", value)


def numbers(*values):
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(key=b"0", kind="FloatStorage", size=12, view=b""):
    return (
        b"(" + text(b"storage") + f"ctorch\n{kind}\n".encode() + text(key) + text(b"cpu") + number(size) + view + b"tQ"
    )


def tensor(stored=None, offset=0, shape=(3, 4), strides=(4, 1)):
    stored = storage() if stored is None else stored
    return call(
        "torch._utils", "_rebuild_tensor_v2", stored, number(offset), numbers(*shape), numbers(*strides), b"\x89N"
    )


def content(*items):
    """The pickle of {"state_dict": {name: tensor, ...}}."""
    pairs = b"".join(text(name) + value + b"s" for name, value in items)
    return b"\x80\x02}" + text(b"state_dict") + b"}" + pairs + b"s."


def as_zip(path, pickled, storages=None, compression=zipfile.ZIP_STORED, extra=()):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("model/data.pkl", pickled)
        for key, data in ({"0": VALUES.tobytes()} if storages is None else storages).items():
            archive.writestr(f"model/data/{key}", data)
        for name, data in extra:
            archive.writestr(name, data)
    return path


def as_legacy(path, pickled, storages=None):
    storages = {"0": (12, VALUES.tobytes())} if storages is None else storages
    head = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    tail = pickle.dumps(list(storages), 2) + b"".join(struct.pack("<q", n) + data for n, data in storages.values())
    path.write_bytes(head + pickled + tail)
    return path


FORMATS = {"zip": as_zip, "legacy": as_legacy}
both = pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS)


def refusal(path):
    """The message that `path` is refused with, which names it, is short, and takes little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(PthError) as error:
            load_pth(path)
        assert tracemalloc.get_traced_memory()[1] < 128 * 2**20
    finally:
        tracemalloc.stop()
    message = str(error.value)
    assert str(path) in message and len(message) < 700 and "\n" not in message
    return message


def assert_same(state, expected):
    assert list(state) == list(expected)
    for name, value in state.items():
        assert (value.dtype, value.shape) == (expected[name].dtype, expected[name].shape), name
        assert value.tobytes() == expected[name].tobytes(), name
        assert value.flags.writeable and value.flags.c_contiguous


@both
def test_views_of_a_shared_storage_are_right(tmp_path, write):
    views = {
        "whole": ((0, (3, 4), (4, 1)), VALUES.reshape(3, 4)),
        "transposed": ((0, (4, 3), (1, 4)), VALUES.reshape(3, 4).T),
        "inner": ((5, (2, 2), (4, 1)), VALUES.reshape(3, 4)[1:, 1:3]),
        "every other": ((1, (5,), (2,)), VALUES[1:11:2]),
        "repeated": ((3, (2, 3), (0, 1)), np.broadcast_to(VALUES[3:6], (2, 3))),
        "scalar": ((11, (), ()), VALUES[11]),
        "empty": ((12, (0, 3), (3, 1)), np.zeros((0, 3), np.float32)),
    }
    items = [(name.encode(), tensor(None, *view)) for name, (view, _) in views.items()]
    _, state = load_pth(write(tmp_path / "a.pth", content(*items)))
    assert_same(state, {name: np.array(value, order="C") for name, (_, value) in views.items()})
    state["whole"][:] = 0
    assert state["inner"].any()


def test_a_storage_that_is_itself_a_part_of_another(tmp_path):
    part = storage(view=b"(" + text(b"1") + number(4) + number(6) + b"t")
    path = as_legacy(tmp_path / "a.pth", content((b"w", tensor(part, 2, (2, 2), (2, 1)))))
    assert_same(load_pth(path)[1], {"w": VALUES[6:10].reshape(2, 2).copy()})
    as_legacy(path, content((b"w", tensor(part, 3, (2, 2), (2, 1)))))
    assert "storage that has 6 values" in refusal(path)


@both
def test_attributes_of_a_state_dict_and_trainers_own_objects_are_passed_over(tmp_path, write):
    buffer = b"cmmengine.logging.history_buffer\nHistoryBuffer\n"
    method = call("__builtin__", "getattr", buffer, text(b"min"))
    history = buffer + b")\x81}" + text(b"log") + NEW + b"s" + text(b"methods") + b"}" + text(b"min") + method + b"ssb"
    state = call("collections", "OrderedDict") + text(b"w") + tensor() + b"s}" + text(b"_metadata") + b"}sb"
    optimizer = b"}" + text(b"state") + b"}" + number(0) + tensor() + b"ss"
    items = {b"meta": b"}" + text(b"epoch") + number(3) + b"s", b"message_hub": history}
    items |= {b"optimizer": optimizer, b"state_dict": state}
    pickled = b"\x80\x02}" + b"".join(text(name) + value + b"s" for name, value in items.items()) + b"."
    meta, state = load_pth(write(tmp_path / "iter_80000.pth", pickled))
    assert meta == {"epoch": 3}
    assert_same(state, {"w": VALUES.reshape(3, 4)})


def test_what_is_written_is_read_again(tmp_path):
    state = {"w": VALUES.reshape(3, 4).T, "n.num_batches_tracked": np.int64(7), "empty": np.zeros((0, 2), np.float16)}
    state = {name: np.asarray(value) for name, value in state.items()}
    save_pth(state, tmp_path / "a.pth", META)
    meta, back = load_pth(tmp_path / "a.pth")
    assert meta == META and is_pth(tmp_path / "a.pth")
    assert_same(back, {name: np.array(value, order="C") for name, value in state.items()})


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[timm]'")


@pytest.mark.parametrize("legacy", [False, True])
def test_torch_and_this_read_each_others_files_alike(torch, tmp_path, legacy):
    base = torch.arange(24.0).reshape(2, 3, 4)
    names = ("float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool", "complex64", "complex128")
    tensors = {name: torch.tensor([[1, 0], [3, 4]], dtype=getattr(torch, name)) for name in names}
    tensors |= {
        "base": base,
        "view": base[1:, :, 1:3],
        "permuted": base.permute(2, 0, 1),
        "expanded": base[0].expand(3, 3, 4),
    }
    tensors |= {"parameter": torch.nn.Parameter(torch.ones(2)), "scalar": torch.tensor(5), "empty": torch.zeros(0, 3)}
    tensors["bfloat16"] = torch.tensor([1.5, -2.25], dtype=torch.bfloat16)
    module = torch.nn.BatchNorm2d(3).state_dict()  # an OrderedDict with attributes
    module.update(tensors)
    path = tmp_path / "a.pth"
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(4))], lr=0.1, momentum=0.9).state_dict()
    whole = {"meta": META, "state_dict": module, "optimizer": optimizer}
    for saved in (whole, module):
        torch.save(saved, path, _use_new_zipfile_serialization=not legacy)
        meta, state = load_pth(path)
        assert meta == (META if saved is whole else {}) and is_pth(path)
        expected = {
            name: value.detach().float() if name == "bfloat16" else value.detach() for name, value in module.items()
        }
        assert_same(state, {name: np.array(value.numpy(), order="C") for name, value in expected.items()})
    kept = {name: value for name, value in state.items() if value.dtype.kind == "f"} | {"n": np.asarray(7, np.int64)}
    save_pth(kept, path, META)
    loaded = torch.load(path, weights_only=True)
    assert loaded["meta"] == META
    assert_same({name: value.numpy() for name, value in loaded["state_dict"].items()}, kept)


def test_needs_neither_jax_nor_pytorch(tmp_path):
    code = "import sys\nfor name in ('jax', 'flax', 'tensorflow', 'torch'): sys.modules[name] = None\n"
    subprocess.run([sys.executable, "-c", code + "import dlv3p_jax.weights.pth"], check=True)


@both
@pytest.mark.parametrize("attack", RUNNING.values(), ids=RUNNING)
def test_attack_runs_nothing(tmp_path, write, attack):
    sentinel = tmp_path / "sentinel"
    attack = aimed_at(attack, bytes(sentinel))
    pickle.loads(b"\x80\x04" + attack + b".")
    assert sentinel.exists()  # it does work
    sentinel.unlink()
    for place in (content((b"w", attack)), b"\x80\x02}" + text(b"meta") + attack + b"s."):
        assert "do not trust it" in refusal(write(tmp_path / "a.pth", place))
    assert not sentinel.exists()


def test_no_pickle_of_the_older_format_is_run(tmp_path):
    sentinel = tmp_path / "sentinel"
    attack = b"\x80\x02" + aimed_at(RUNNING["os.system"], bytes(sentinel)) + b"."
    good = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {}, {}, [])]
    for place in range(1, 5):
        (tmp_path / "a.pth").write_bytes(b"".join([*good[:place], attack, *good[place + 1 :]]))
        assert "do not trust it" in refusal(tmp_path / "a.pth")
    assert not sentinel.exists()


BIG = 2**40
REFUSED = {
    "a method of a module": call("__builtin__", "getattr", b"ccollections\nOrderedDict\n", text(b"fromkeys")),
    "torch.load": call("torch", "load", text(b"/etc/passwd")),
    "torch.hub": call("torch.hub", "load", text(b"owner/repository")),
    "a new object": b"ccollections\nOrderedDict\n)\x81",
    "a rebuilt class": call("torch._utils", "_rebuild_wrapper_subclass", b"N"),
    "a function of torch's as a class": b"ctorch._utils\n_rebuild_tensor_v2\n)\x81",
    "a persistent id of a module": b"(" + text(b"module") + b"N" + text(b"x.py") + text(b"import os") + b"tQ",
    "a persistent id of nothing": b"K\x01Q",
    "a storage of objects": tensor(storage(kind="UntypedStorage")),
    "a storage of no values": tensor(storage(size=-1)),
    "a huge storage": tensor(storage(size=BIG)),
    "a storage of two kinds": storage(kind="DoubleStorage") + b"0" + tensor(),
    "a part beyond its storage": tensor(storage(view=b"(" + text(b"1") + number(8) + number(8) + b"t")),
    "beyond the end": tensor(offset=1),
    "before the beginning": tensor(offset=-1),
    "a negative stride": tensor(strides=(-4, 1)),
    "a huge stride": tensor(strides=(BIG, 1)),
    "a huge shape": tensor(shape=(BIG, BIG), strides=(0, 0)),
    "nothing of a huge shape": tensor(shape=(0, BIG, BIG), strides=(0, 0, 0)),
    "one value a billion times": tensor(shape=(2**15, 2**15), strides=(0, 0)),
    "too few strides": tensor(shape=(3, 4), strides=(4,)),
    "too many dimensions": tensor(shape=(1,) * 40, strides=(1,) * 40),
    "a shape of nested tuples": call(
        "torch._utils", "_rebuild_tensor_v2", storage(), number(0), b")" + b"q\x00h\x00\x86" * 64, numbers(1), b"\x89N"
    ),
    "a key of nested tuples": b"})" + b"q\x00h\x00\x86" * 64 + b"Ns",
    "no tensor": NEW,
    "a huge memo index": b"Nr\xff\xff\xff\xff",
    "endless operations": b"N" * 1_100_000,
    "an extension": b"\x82\x01",
}


@both
@pytest.mark.parametrize("attack", REFUSED.values(), ids=REFUSED)
def test_attack_is_refused_in_little_memory(tmp_path, write, attack):
    refusal(write(tmp_path / "a.pth", content((b"w", attack))))


@both
def test_many_tensors_of_the_same_values_do_not_fill_the_memory(tmp_path, write):
    items = [(b"%d" % index, tensor(storage(size=2**18), 0, (2**18,), (1,))) for index in range(100)]
    data = bytes(2**20)
    storages = {"0": data if write is as_zip else (2**18, data)}
    assert "together" in refusal(write(tmp_path / "a.pth", content(*items), storages))


def zip_attacks(path):
    good = content((b"w", tensor()))
    with pytest.warns(UserWarning, match="Duplicate name"):
        as_zip(path, good, extra=[("model/data.pkl", good)])
    yield "twice", path
    yield "packed", as_zip(path, good, {"0": bytes(2**28)}, zipfile.ZIP_DEFLATED)
    yield "has 44 bytes", as_zip(path, good, {"0": bytes(44)})
    yield "lacks 'model/data/0'", as_zip(path, good, {})
    yield "lacks 'model/data/../../x'", as_zip(path, content((b"w", tensor(storage(b"../../x")))))
    yield "TorchScript", as_zip(path, good, extra=[("model/constants.pkl", b"")])
    yield "none of PyTorch's", as_zip(path, good, extra=[("other/data.pkl", good)])
    as_zip(path, good)
    path.write_bytes(path.read_bytes().replace(VALUES.tobytes(), bytes(48)))
    yield "Bad CRC", path
    path.write_bytes(path.read_bytes()[:-40])
    yield "damaged or only a part", path


def test_zip_archives_that_are_made_to_do_harm(tmp_path):
    for message, path in zip_attacks(tmp_path / "a.pth"):
        assert message in refusal(path)
    assert os.listdir(tmp_path) == ["a.pth"]


OTHERS = {
    "empty": (b"", "is empty"),
    "html": (b"<html>404</html>", "HTML or XML page: the download failed"),
    "json": (b'{"a": 1}', "is text"),
    "pdparams": (pickle.dumps({"w": np.ones(3)}), "no file of torch.save"),
    "gzip": (b"\x1f\x8b\x08", "gzip"),
}


@pytest.mark.parametrize(("data", "message"), OTHERS.values(), ids=OTHERS)
def test_other_files_are_told_what_they_are(tmp_path, data, message):
    (tmp_path / "a.pth").write_bytes(data)
    assert message in refusal(tmp_path / "a.pth")
    assert "is a folder" in refusal(tmp_path)
    assert "no such file" in refusal(tmp_path / "b.pth")


@both
def test_damaged_files_end_in_arrays_or_in_our_error(tmp_path, write):
    path = write(tmp_path / "a.pth", content((b"a", tensor()), (b"b", tensor(None, 3, (2,), (5,)))))
    refused = 0
    for variant in damaged.variants(path.read_bytes(), 400):
        path.write_bytes(variant)
        try:
            _, state = load_pth(path)
        except PthError:
            refused += 1
        else:
            assert all(isinstance(name, str) and isinstance(value, np.ndarray) for name, value in state.items())
    assert refused > 100
