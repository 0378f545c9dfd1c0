"""Files of class names, as people and labelling tools write them."""

import pytest

from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.datasets.class_files import read


def test_class_names(tmp_path):
    with pytest.raises(DatasetError, match=r"classes\.txt is missing: write the class names into it, one a line"):
        read(None, tmp_path)
    (tmp_path / "class_names.txt").write_text("weed\ncrop\n")
    assert read(None, tmp_path).names == ["weed", "crop"]
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbfbackground\r\ntall weed \r\n\r\n")
    assert read(None, tmp_path).names == ["background", "tall weed"]
    assert read(tmp_path / "class_names.txt", tmp_path).names == ["weed", "crop"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("only\n", "1 class names; from 2 to 255"),
        ("", "0 class names"),
        ("\n".join(map(str, range(256))), "256 class names"),
        ("a\n\nb\n", "line 2: an empty class name"),
        ("a\nb\na\n", 'line 3: the class "a" is there already'),
        ("Class\nroad\ncar\n", 'begins with "Class", which looks like the head of a table'),  # of one column
        ("id,trainId,name\n0,0,road\n1,1,car\n", "looks like the head of a table"),
        ("Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.1\t1\t2\t1\twall\n", "looks like the head of a table"),
        ("1,0.5,road\n2,0.25,car\n", "looks like a table"),
        ('{"names": ["road", "car"]}\n', "looks like JSON"),
        ("names:\n- road\n- car\n", "looks like YAML"),
        ("Pixel Value, Class\n0, road\nx, car\n", "line 3: values and colours are whole numbers"),
        ("Pixel Value, Class\n0, road\n0, car\n", "line 3: the value of car is there already"),
        ("Pixel Value, Class\n0, road\n1\n", "line 3: give 2 columns"),
        ("road:1,2,3::\ncar:1,2,3::\n", "line 2: the colour of car is there already"),
        ("road #804080\ncar #0000\n", "line 2: #0000 is no colour: # and six digits"),
        ("road #804080\ncar #804080\n", "line 2: the colour of car is there already"),
        ("road:1,2,3::\ncar:1,2,300::\n", "line 2: colours have channels of 0..255"),
    ],
)
def test_class_names_that_cannot_be(tmp_path, text, message):
    (tmp_path / "names").write_text(text)
    with pytest.raises(DatasetError, match=message):
        read(tmp_path / "names", tmp_path)


NAMES, COLORS = ["road", "car"], {0: (128, 64, 128), 1: (0, 0, 142)}


@pytest.mark.parametrize(
    ("text", "names", "colors"),
    [
        ("Pixel Value, Class\n0, road\n1, car\n", NAMES, {}),  # Roboflow's _classes.csv
        ("1: car\n0: road\n", NAMES, {}),
        ("0 road\n1 car\n", NAMES, {}),
        ("2 wheeler\n4 wheeler\n", ["2 wheeler", "4 wheeler"], {}),
        ("wall, brick\nsky\n", ["wall, brick", "sky"], {}),
        ("__ignore__\n_background_\ncar\n", ["_background_", "car"], {}),  # LabelMe's labels.txt
        ("# label:color_rgb:parts:actions\nroad:128,64,128::\ncar:0,0,142::\n", NAMES, COLORS),  # CVAT's labelmap.txt
        ("road:::\ncar:::\n", NAMES, {}),
        ("name,r,g,b\nroad,128,64,128\ncar,0,0,142\n", NAMES, COLORS),  # Kaggle's class_dict.csv
        ("road #804080\ncar #00008e\n", NAMES, COLORS),
        ("128 64 128\troad\n0 0 142\tcar\n", NAMES, COLORS),  # CamVid's label_colors.txt
    ],
)
def test_tables_of_labelling_tools(tmp_path, text, names, colors):
    (tmp_path / "names").write_text(text)
    classes = read(tmp_path / "names", tmp_path)
    assert (classes.names, classes.colors, classes.by_value) == (names, colors, None)
    assert dict(classes.by_color.colors if classes.by_color else ()) == {color: i for i, color in colors.items()}
    is_plain = text.splitlines()[0].removesuffix(" #804080") in names
    assert bool(classes.remarks) != is_plain


def test_some_names_have_colours(tmp_path):
    (tmp_path / "classes.txt").write_text("traffic light, #FAaa1e\nroad\ncar\t#00008e\n")
    classes = read(None, tmp_path)
    assert (classes.names, classes.colors) == (["traffic light", "road", "car"], {0: (250, 170, 30), 2: (0, 0, 142)})
    assert classes.by_color is None and not classes.remarks


def test_values_and_void_of_tables(tmp_path):
    (tmp_path / "_classes.csv").write_text("Pixel Value, Class\n3, car\n0, Void\n1, road\n")
    classes = read(None, tmp_path, ignore_label=250)
    assert classes.names == NAMES
    assert dict(classes.by_value.values) == {0: 250, 1: 0, 3: 1, 250: 250}
    (tmp_path / "labelmap.txt").write_text("void:0,0,0::\nroad:128,64,128::\ncar:0,0,142::\n")
    classes = read(None, tmp_path, ignore_label=250)
    assert (classes.names, classes.colors) == (NAMES, COLORS)
    assert dict(classes.by_color.colors) == {(0, 0, 0): 250, COLORS[0]: 0, COLORS[1]: 1}
    assert dict(classes.by_value.values) == {0: 250, 1: 0, 2: 1, 250: 250}  # where labels have one channel
    assert "labelmap.txt counts; _classes.csv is left out" in classes.remarks[0] and "void" in classes.remarks[1]
