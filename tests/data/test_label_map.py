import numpy as np
import pytest

from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.data.label_map import LabelMap, parse


def test_every_way_to_write_a_pair(tmp_path):
    expected = LabelMap(((0, 0), (255, 1), (7, 250)), (((128, 64, 128), 0), ((128, 64, 127), 2)))
    text = "0:0,255:1,7:ignore,128-64-128:0,#80407f:2"
    assert parse(text, ignore_label=250) == expected
    assert parse(text.replace(",", ", "), ignore_label=250) == expected
    file = tmp_path / "map.txt"
    file.write_bytes(b"\xef\xbb\xbf" + text.replace(",", "\r\n").encode() + b"\r\n\r\n")
    assert parse(str(file), ignore_label=250) == expected


def test_negative_values_and_words_for_what_is_no_number():
    expected = LabelMap(((-1, 250), (70000, 1)), (), nan=250, other=3)
    assert parse("-1:ignore,70000:1,nan:ignore,other:3", ignore_label=250) == expected
    assert expected.targets() == {250, 1, 3}


def test_many_pairs_are_longer_than_a_name_of_a_file(tmp_path):
    colors = [(index, 100, 200) for index in range(21)]
    text = ",".join(f"{red}-{green}-{blue}:{index}" for index, (red, green, blue) in enumerate(colors))
    assert len(text) > 255
    assert parse(text, 255) == LabelMap(colors=tuple((color, index) for index, color in enumerate(colors)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no_such_file" * 50, "neither pairs nor a readable file"),
        ("no_such_file", "neither pairs nor a readable file"),
        ("0:0,x:1", '"x:1"'),
        ("0:0,1", '"1"'),
        ("0:256", '"0:256"'),
        ("4294967296:0", '"4294967296:0"'),
        ("1.5:0", '"1.5:0"'),
        ("nan:0,other:1", "lists no value"),
        ("0:0,other:1,other:2", "contradicts"),
        ("300-0-0:1", "above 255"),
        ("0:0,0:1", "contradicts"),
        (":", '":"'),
        ("", "neither"),
    ],
)
def test_mistakes_are_quoted(text, message):
    with pytest.raises(DatasetError, match=message):
        parse(text, 255)


def test_apply_equals_a_lookup_per_pixel():
    rng = np.random.default_rng(0)
    keys = rng.permutation(65536)[:40]
    table = LabelMap(tuple((int(key), index % 7) for index, key in enumerate(keys)))
    label = rng.choice(keys, (9, 13)).astype(np.uint16)
    found, used_other = table.apply(label)
    assert not used_other
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.vectorize(dict(table.values).get)(label))


def test_apply_names_what_it_lacks_and_how_often():
    with pytest.raises(DatasetError, match=r"values 3 \(2 pixels\), 9 \(1 pixel\) not in the label map"):
        LabelMap(((0, 0), (5, 1))).apply(np.array([[0, 5, 3, 9, 3]], np.uint8))
