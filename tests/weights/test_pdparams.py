"""Files of weights: what Paddle writes is read and written, and what attackers write does nothing."""

import collections
import gzip
import io
import os
import pickle
import pickletools
import runpy
import struct
import subprocess
import sys
import tarfile
import tracemalloc

import damaged
import numpy as np
import pytest
from attacks import NEW, RUNNING, TOUCH, aimed_at, call, text

from dlv3p_jax.weights.pdparams import PdparamsError, load_pdparams, save_pdparams

ARRAYS = {
    "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2) - np.float32(0.1),
    "half": np.array([1.5, -0.0, np.nan], np.float16),
    "double": np.linspace(0, 1, 7),
    "steps": np.array(2**40, np.int64),
    "transposed": np.asfortranarray(np.arange(12.0, dtype=np.float32).reshape(3, 4)),
    "permuted": np.arange(24.0).reshape(2, 3, 4).transpose(1, 0, 2),
    "mask": np.array([True, False]),
    "big_endian": np.array([1, 2], ">f4"),
    "empty": np.zeros((0, 3), np.float32),
}


def assert_same(state, expected):
    assert list(state) == list(expected)
    for name, value in state.items():
        assert (value.dtype, value.shape) == (expected[name].dtype, expected[name].shape), name
        assert value.tobytes() == expected[name].tobytes(), name
        assert value.flags.writeable


def refusal(path):
    """The message that `path` is refused with, which names it and is short."""
    with pytest.raises(PdparamsError) as error:
        load_pdparams(path)
    message = str(error.value)
    assert str(path) in message and len(message) < 700 and message.count("\n") < 3
    return message


def archive(path, members, mode="w:gz"):
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            member = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("layout", [2, 3])
def test_reads_what_both_generations_of_paddle_write(shared, tmp_path, layout):
    weights = runpy.run_path(shared / "parity" / "weights.py")
    state = weights["make_state"](shared / "parity" / "deeplabv3p_resnet18_vd_c2.json")
    weights["save_pdparams"](state, tmp_path / "model.pdparams", layout)
    assert_same(load_pdparams(tmp_path / "model.pdparams"), state)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("module", [b"numpy._core", b"numpy.core"])
def test_reads_every_protocol_of_numpy_1_and_2(tmp_path, protocol, module):
    content = pickle.dumps(collections.OrderedDict(ARRAYS), protocol)
    if protocol < 4:  # where the module is text that ends at a line break
        content = content.replace(b"numpy._core", module).replace(b"numpy.core", module)
    (tmp_path / "a").write_bytes(content)
    assert_same(load_pdparams(tmp_path / "a"), ARRAYS)
    (tmp_path / "b").write_bytes(pickle.dumps({"x": np.float32(3)}, protocol))
    assert load_pdparams(tmp_path / "b")["x"] == np.array(3, np.float32)


def test_reads_python_2_strings_and_named_tensors(tmp_path):
    array = np.array([1.0, -2.5], np.float32)
    code = (
        b"\x80\x02}U\x01wcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02\x85"
        b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08"
    )
    (tmp_path / "python2").write_bytes(code + array.tobytes() + b"tbs.")
    assert_same(load_pdparams(tmp_path / "python2"), {"w": array})
    (tmp_path / "named").write_bytes(pickle.dumps({"w": ("linear_0.w_0", array)}))
    assert_same(load_pdparams(tmp_path / "named"), {"w": array})


def test_puts_slices_together_and_drops_paddles_own_entries(tmp_path):
    whole = np.arange(12, dtype=np.float32).reshape(3, 4)
    flat = whole.ravel()
    saved = {"b": np.ones(2), "w@@.0": flat[:5], "w@@.1": flat[5:10], "w@@.2": flat[10:]}
    saved["StructuredToParameterName@@"] = {"b": "linear_0.b_0"}
    entry = {"OriginShape": (3, 4), "slices": ["w@@.0", "w@@.1", "w@@.2"]}
    (tmp_path / "a").write_bytes(pickle.dumps({**saved, "UnpackBigParamInfor@@": {"w": entry}}, 2))
    assert_same(load_pdparams(tmp_path / "a"), {"b": np.ones(2), "w": whole})
    for wrong in (
        {**entry, "OriginShape": (3, 5)},
        {**entry, "slices": ["w@@.0"] * 3},
        {**entry, "slices": ["no"]},
        {**entry, "slices": []},
        {**entry, "OriginShape": (2**70,)},
        [],
    ):
        (tmp_path / "a").write_bytes(pickle.dumps({**saved, "UnpackBigParamInfor@@": {"w": wrong}}, 2))
        assert "slices" in refusal(tmp_path / "a")


@pytest.mark.parametrize("mode", ["w:gz", "w"])
@pytest.mark.parametrize("name", ["model.pdparams", "./a/b/model.pdparams"])
def test_reads_the_one_member_of_an_archive_whatever_the_names(tmp_path, mode, name):
    members = [("./a/readme.txt", b"text"), ("._model.pdparams", b"attributes"), (name, pickle.dumps(ARRAYS))]
    assert_same(load_pdparams(archive(tmp_path / "weights.pdparams", members, mode)), ARRAYS)
    (tmp_path / "plain.tar.gz").write_bytes(pickle.dumps(ARRAYS))
    assert_same(load_pdparams(tmp_path / "plain.tar.gz"), ARRAYS)
    assert sorted(os.listdir(tmp_path)) == ["plain.tar.gz", "weights.pdparams"]


def test_round_trip(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_pdparams(ARRAYS, "~/new/model.pdparams")
    path = tmp_path / "new" / "model.pdparams"
    assert_same(load_pdparams("~/new/model.pdparams"), ARRAYS)
    # As paddle.load reads it. NumPy itself turns big-endian arrays of a pickle into native ones.
    assert_same(pickle.loads(path.read_bytes(), encoding="latin1"), pickle.loads(pickle.dumps(ARRAYS, 4)))
    assert b"numpy._core" not in path.read_bytes()
    assert max(opcode.proto for opcode, _, _ in pickletools.genops(path.read_bytes())) <= 4
    assert os.listdir(path.parent) == ["model.pdparams"]


def test_what_cannot_be_written_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.pdparams"
    path.write_bytes(b"old")
    for state in (
        {"w": np.array([None])},
        {"w": [1.0]},
        {"w": np.zeros(1, "f4,i4")},
        {1: np.ones(1)},
        {"UnpackBigParamInfor@@": np.ones(1)},
    ):
        with pytest.raises(PdparamsError, match="model.pdparams"):
            save_pdparams(state, path)

    class Breaking(np.ndarray):
        def tobytes(self, order="C"):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_pdparams({"w": np.ones(3).view(Breaking)}, path)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["model.pdparams"]


def test_needs_neither_jax_nor_tensorflow():
    code = "import sys\nfor name in ('jax', 'flax', 'tensorflow'): sys.modules[name] = None\n"
    code += "import dlv3p_jax.weights.pdparams"
    subprocess.run([sys.executable, "-c", code], check=True)


# Attacks.
DTYPE = call("numpy", "dtype", text(b"f4"), b"\x89", b"\x88")


@pytest.mark.parametrize("attack", RUNNING.values(), ids=RUNNING)
def test_attack_runs_nothing(tmp_path, attack):
    content = aimed_at(attack, bytes(tmp_path / "sentinel"))
    path = tmp_path / "model.pdparams"
    path.write_bytes(b"\x80\x04}" + text(b"w") + content + b"s.")
    pickle.loads(path.read_bytes())
    assert (tmp_path / "sentinel").exists()  # it does work
    (tmp_path / "sentinel").unlink()
    assert "do not trust it" in refusal(path)
    assert "do not trust it" in refusal(archive(tmp_path / "a.tar.gz", [("m.pdparams", path.read_bytes())]))
    assert not (tmp_path / "sentinel").exists()


REFUSED = {
    "numpy.load": call("numpy", "load", text(b"/etc/passwd")),
    "numpy helper": call("numpy.testing._private.utils", "runstring", TOUCH, b"}"),
    "dotted below numpy": b"\x8c\x05numpy\x8c\x0ef2py.os.system\x93(" + TOUCH + b"tR",
    "_reconstructor": call("copyreg", "_reconstructor", b"cnumpy\nndarray\n", b"cbuiltins\nobject\n", b"N"),
    "zip codec": call("_codecs", "encode", text(b"x"), text(b"zip")),
    "object dtype": call("numpy", "dtype", text(b"O8"), b"\x89", b"\x88"),
    "dtype text": call("numpy", "dtype", text(b"(1000000,1000000)f4"), b"\x89", b"\x88"),
    "huge ndarray": call("numpy", "ndarray", b"\x8a\x06\x00\x00\x00\x00\x00\x10\x85"),
    "huge bytes": call("builtins", "bytes", b"J\xff\xff\xff\x7f"),
    "huge shape": NEW + b"(K\x01J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86" + DTYPE + b"\x89C\x04abcdtb",
    "negative shape": NEW + b"(K\x01J\xff\xff\xff\xff\x85" + DTYPE + b"\x89C\x04abcdtb",
    "zero and huge shape": NEW
    + b"(K\x01K\x00"
    + b"\x8a\x06\x00\x00\x00\x00\x00\x10" * 2
    + b"\x87"
    + DTYPE
    + b"\x89C\x00tb",
    "subclass": call("numpy.core.multiarray", "_reconstruct", b"cnumpy\nmatrix\n", b"K\x00\x85", b"C\x01b"),
    "BUILD on a function": b"c_codecs\nencode\nN}X\x01\x00\x00\x00aK\x01s\x86b",
    "BUILD on a dict": b"}}X\x01\x00\x00\x00aK\x01sb",
    "dtype with fields": DTYPE + b"(K\x03X\x01\x00\x00\x00<N)}K\x01K\x01K\x00tb",
    "array without content": NEW,
    "persistent id": b"K\x01Q",
    "extension": b"\x82\x01",
    "huge memo index": b"Nr\xff\xff\xff\xff",
    "missing memo": b"h\x05",
    "deep list": b"]" * 100_000 + b"a" * 99_999,
    "deep key": b"})" + b"\x85" * 200_000 + b"Ns",
    "endless operations": b"N" * 1_100_000,
    "huge length": b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f",
    "long number": b"\x8b\xff\xff\xff\x7f",
    "next buffer": b"\x97",
    "billion laughs": b"]q\x00" + b"".join(b"](" + b"h%c" % i * 50 + b"eq%c" % (i + 1) for i in range(20)),
}


# A tuple of two of a tuple of two of ..., 64 deep, in 320 bytes: its hash, or its text, takes 2^64 steps.
NESTED = b")" + b"q\x00h\x00\x86" * 64
SLICES = text(b"UnpackBigParamInfor@@") + b"}" + text(b"w") + b"}("
SHARING = {
    "key": b"}" + NESTED + b"Ns",
    "shape": b"}" + text(b"w") + NEW + b"(K\x01" + NESTED + DTYPE + b"\x89C\x04abcdtbs",
    "dtype": b"}" + text(b"w") + call("numpy", "dtype", NESTED) + b"s",
    "slice": b"}" + SLICES + text(b"slices") + b"]" + NESTED + b"a" + text(b"OriginShape") + b"K\x01\x85uss",
    "shape of slices": b"}" + SLICES + text(b"slices") + b"]" + text(b"OriginShape") + NESTED + b"uss",
    "slices themselves": b"}" + SLICES + text(b"slices") + NESTED + b"uss",
}
READ = """
import sys
from dlv3p_jax.weights.pdparams import PdparamsError, load_pdparams
for path in sys.argv[1:]:
    try:
        load_pdparams(path)
    except PdparamsError as error:
        print(len(str(error)))
"""


def test_tuples_that_share_each_other_cost_no_more_than_the_file_has(tmp_path):
    array = text(b"a") + NEW + b"(K\x01K\x01\x85" + DTYPE + b"\x89C\x04abcdtb"
    paths = [tmp_path / f"{index}.pdparams" for index in range(len(SHARING))]
    for path, attack in zip(paths, SHARING.values(), strict=True):
        path.write_bytes(b"\x80\x04" + attack + array + b"s.")
    # Nothing but a signal would end it.
    process = subprocess.run([sys.executable, "-c", READ, *paths], capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    lengths = list(map(int, process.stdout.split()))
    assert len(lengths) == len(paths) and max(lengths) < 700


def measured_refusal(path, mebibytes):
    tracemalloc.start()
    try:
        message = refusal(path)
        assert tracemalloc.get_traced_memory()[1] < mebibytes * 2**20
    finally:
        tracemalloc.stop()
    return message


@pytest.mark.parametrize("attack", REFUSED.values(), ids=REFUSED)
def test_attack_is_refused_in_little_memory(tmp_path, attack):
    path = tmp_path / "model.pdparams"
    path.write_bytes(b"\x80\x04}" + text(b"w") + attack + b"s.")
    measured_refusal(path, 128)


def test_a_forbidden_global_is_named(tmp_path):
    path = tmp_path / "model.pdparams"
    path.write_bytes(b"\x80\x04cos\x1b[31m\nsystem\n.")
    message = refusal(path)
    assert "os\\x1b[31m.system" in message and "\x1b" not in message


def test_slices_of_the_same_array_do_not_fill_the_memory(tmp_path):
    array, names = np.zeros(2**20, np.uint8), [f"w@@.{number}" for number in range(300)]
    slices = {"w": {"OriginShape": (300 * 2**20,), "slices": names}}
    (tmp_path / "a").write_bytes(pickle.dumps({"UnpackBigParamInfor@@": slices} | dict.fromkeys(names, array)))
    assert "twice" in measured_refusal(tmp_path / "a", 64)


def test_many_arrays_of_the_same_bytes_do_not_fill_the_memory(tmp_path):
    block = b"B" + struct.pack("<I", 2**20) + bytes(2**20) + b"q\x00"
    array = NEW + b"(K\x01J\x00\x00\x04\x00\x85" + DTYPE + b"\x89%stb"
    items = [text(b"%d" % number) + array % (b"h\x00" if number else block) for number in range(500)]
    (tmp_path / "a").write_bytes(b"\x80\x04}(" + b"".join(items) + b"u.")
    assert "together" in measured_refusal(tmp_path / "a", 32)


def link(kind):
    member = tarfile.TarInfo("model.pdparams")
    member.type, member.linkname = kind, "/etc/passwd"
    return member


GOOD = pickle.dumps({"w": np.ones(3)})
ARCHIVES = {
    "escaping": ([("../../model.pdparams", GOOD)], "leads out"),
    "absolute": ([("/tmp/model.pdparams", GOOD)], "leads out"),
    "windows": ([("C:\\model.pdparams", GOOD)], "leads out"),
    "escaping beside": ([("model.pdparams", GOOD), ("a/../../x", b"")], "leads out"),
    "symlink": ([(link(tarfile.SYMTYPE), b"")], "no plain file"),
    "hard link": ([(link(tarfile.LNKTYPE), b"")], "no plain file"),
    "device": ([(link(tarfile.CHRTYPE), b"")], "no plain file"),
    "none": ([("readme.txt", b"x")], "without a .pdparams; it holds 'readme.txt'"),
    "two": ([("a.pdparams", GOOD), ("b/b.pdparams", GOOD)], "several .pdparams"),
    "nested": ([("inner.tar", b"x" * 600)], "without a .pdparams"),
    "nested by name": ([("a.pdparams", gzip.compress(GOOD))], "compressed with gzip"),
    "members": ([(f"{number}.txt", b"") for number in range(1100)], "members"),
}


@pytest.mark.parametrize(("members", "message"), ARCHIVES.values(), ids=ARCHIVES)
def test_archive_is_refused(tmp_path, members, message):
    before = sorted(os.listdir(tmp_path))
    path = archive(tmp_path / "weights.tar.gz", members)
    assert message in refusal(path)
    assert sorted(os.listdir(tmp_path)) == [*before, "weights.tar.gz"]


def test_a_decompression_bomb_is_stopped(tmp_path):
    member = tarfile.TarInfo("model.pdparams")
    member.size = 1500 * 2**20
    bomb = gzip.compress(member.tobuf()) + gzip.compress(bytes(2**20)) * 1501  # gzip reads on over its members
    (tmp_path / "bomb.tar.gz").write_bytes(bomb)
    assert len(bomb) < 2 * 2**20
    assert "unpacks to more than" in measured_refusal(tmp_path / "bomb.tar.gz", 256)


OTHER_FILES = {
    "empty": (b"", "is empty"),
    "html": (b"\n<!DOCTYPE html><html>404</html>", "HTML or XML page: the download failed"),
    "json": (b'{"code":"NoSuchKey"}', 'is text, which begins with \'{"code"'),
    "zip": (b"PK\x03\x04rest", "PyTorch"),
    "torch": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.rest", "PyTorch"),
    "gzip of a pickle": (gzip.compress(GOOD), "no tar archive"),
    "binary": (b"\x00\x01\x02", "is no .pdparams"),
    "protocol 0": (pickle.dumps({}, 0), "is text"),
    "a list": (pickle.dumps([1]), "a list of 1 instead of a dict"),
    "no arrays": (pickle.dumps({}), "holds no arrays"),
    "optimizer": (
        pickle.dumps({"w": np.ones(1), "LR_Scheduler": {"last_epoch": 3}, "epoch": 2}),
        "LR_Scheduler: a dict",
    ),
    "optimizer without a schedule": (
        pickle.dumps({"conv2d_0.w_0_velocity_0": np.ones(1), "conv2d_1.w_0_velocity_0": np.ones(1)}),
        "is an optimizer's state",
    ),
}


@pytest.mark.parametrize(("content", "message"), OTHER_FILES.values(), ids=OTHER_FILES)
def test_other_files_are_told_what_they_are(tmp_path, content, message):
    (tmp_path / "model.pdparams").write_bytes(content)
    assert message in refusal(tmp_path / "model.pdparams")


@pytest.mark.parametrize("name", ["model.pdmodel", "model.pdiparams", "model.pdiparams.info", "model.pdopt", "."])
def test_what_lies_beside_the_weights_is_told_what_it_is(tmp_path, name):
    if name != ".":
        (tmp_path / name).write_bytes(b"\n\xb0\x01")  # as a program begins
    assert ".pdparams that PaddleSeg saved" in refusal(tmp_path / name)
    (tmp_path / "model.pdparams").write_bytes(GOOD)
    assert f"give {tmp_path / 'model.pdparams'}" in refusal(tmp_path / name)


def test_what_is_no_file_is_refused(tmp_path):
    assert "is a folder" in refusal(tmp_path)
    assert "there is no such file" in refusal(tmp_path / "none.pdparams")
    os.mkfifo(tmp_path / "pipe")
    assert "no regular file" in refusal(tmp_path / "pipe")


@pytest.mark.parametrize("kind", ["2", "5", "saved", "tar", "gz"])
def test_damaged_files_end_in_arrays_or_in_our_error(tmp_path, kind):
    state = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones((), np.int64)}
    path = tmp_path / "model"
    if kind == "saved":
        save_pdparams(state, path)
    elif kind in ("tar", "gz"):
        archive(path, [("m.pdparams", pickle.dumps(state))], "w:gz" if kind == "gz" else "w")
    else:
        path.write_bytes(pickle.dumps(state, int(kind)))
    refused = 0
    for content in damaged.variants(path.read_bytes(), 300, within=1200):
        path.write_bytes(content)
        try:
            loaded = load_pdparams(path)
        except PdparamsError:
            refused += 1
        else:
            assert all(isinstance(name, str) and isinstance(value, np.ndarray) for name, value in loaded.items())
    assert refused > 50
