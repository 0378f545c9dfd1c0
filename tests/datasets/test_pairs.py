"""List files and parallel folders, as people write them."""

import pathlib

import pytest

from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.datasets.pairs import find_pairs


def touch(root: pathlib.Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def with_lists(root: pathlib.Path, train: str | bytes, *names: str) -> pathlib.Path:
    """A source whose train.txt is given, beside a val.txt of one pair, and whose files are these."""
    touch(root, "v.jpg", "v.png", *names)
    (root / "val.txt").write_text("v.jpg v.png\n")
    (root / "train.txt").write_bytes(train if isinstance(train, bytes) else train.encode())
    return root


def relative(root, pairs):
    return [(pair.id, *(str(pathlib.Path(p).relative_to(root)) for p in (pair.image, pair.label))) for pair in pairs]


NAMES = ("img/a.jpg", "lab/a.png", "img/b.jpg", "lab/b.png")
TWO = [("img/a", "img/a.jpg", "lab/a.png"), ("img/b", "img/b.jpg", "lab/b.png")]


@pytest.mark.parametrize(
    "text",
    [
        "img/a.jpg lab/a.png\nimg/b.jpg lab/b.png\n",
        "img/a.jpg lab/a.png\nimg/b.jpg lab/b.png",
        "img/a.jpg\tlab/a.png\r\nimg/b.jpg \t lab/b.png\r\n\r\n  \r\n",  # tabs, CRLF, blank lines at the end
        b"\xef\xbb\xbfimg/a.jpg lab/a.png\nimg/b.jpg lab/b.png\n",  # BOM
        "img\\a.jpg lab\\a.png\nimg\\b.jpg lab\\b.png\n",  # L23
        "img/a.jpg|lab/a.png\nimg/b.jpg, lab/b.png\n",  # L21
        "img/a.jpg   lab/a.png\n\nimg/b.jpg;lab/b.png\n",
        '"img/a.jpg" "lab/a.png"\n"img/b.jpg"\t"lab/b.png"\n',
    ],
)
def test_lists_are_read_in_order(tmp_path, text):
    pairs, problems, remarks = find_pairs(with_lists(tmp_path, text, *NAMES))
    assert relative(tmp_path, pairs["train"]) == TWO
    assert relative(tmp_path, pairs["val"]) == [("v", "v.jpg", "v.png")]
    assert (problems, remarks) == ([], [])


def test_order_is_the_lists(tmp_path):
    pairs, _, _ = find_pairs(with_lists(tmp_path, "img/b.jpg lab/b.png\nimg/a.jpg lab/a.png\n", *NAMES))
    assert relative(tmp_path, pairs["train"]) == TWO[::-1]


@pytest.mark.parametrize("stem", ["a b", "weed (272)", "2014-05-23 08:00", "a, b", "ä b"])
@pytest.mark.parametrize("separator", [" ", "\t", " | "])
def test_names_with_blanks(tmp_path, stem, separator):  # L22
    text = f"{stem}.jpg{separator}{stem}.png\n"
    pairs, problems, _ = find_pairs(with_lists(tmp_path, text, f"{stem}.jpg", f"{stem}.png"))
    assert relative(tmp_path, pairs["train"]) == [(stem, f"{stem}.jpg", f"{stem}.png")]
    assert not problems


def test_a_line_with_two_readings_is_refused_with_its_number(tmp_path):
    source = with_lists(tmp_path, "v.jpg v.png\na b c\n", "a", "a b", "c", "b c")
    with pytest.raises(DatasetError, match=r'train\.txt, line 2: "a b c" can be read in 2 ways; put a tab'):
        find_pairs(source)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v.jpg v.png\na.jpg\n", r'train\.txt, line 2: "a\.jpg" is one name'),
        ("a b.jpg a b.png\n", r'train\.txt, line 1: "a b\.jpg a b\.png" does not name two files'),
        ("v.jpg v.png\nv.jpg other.png\n", r"train\.txt, line 2: v\.jpg has another label than on line 1"),
        (b"\xff\xfev\x00.\x00", r"train\.txt: not UTF-8"),
        ("", r"train\.txt: the train split is empty"),
        ("v.jpg v.png\n" + "a " * 200, r"train\.txt, line 2: .* does not name two files"),  # longer than a name can be
        ("\n \n", r"train\.txt: the train split is empty"),
    ],
)
def test_lines_that_cannot_be_read(tmp_path, text, message):
    with pytest.raises(DatasetError, match=message):
        find_pairs(with_lists(tmp_path, text))


def test_missing_files_are_named_with_their_line(tmp_path):
    text = "img/a.jpg lab/a.png\nimg/c.jpg lab/b.png\nimg/b.jpg\tlab/c.png\n"
    pairs, problems, _ = find_pairs(with_lists(tmp_path, text, *NAMES))
    assert relative(tmp_path, pairs["train"]) == TWO[:1]
    assert [problem.message.split(" in /")[0] for problem in problems] == [
        f"{tmp_path}/train.txt, line 2: img/c.jpg not found",
        f"{tmp_path}/train.txt, line 3: lab/c.png not found",
    ]


def test_repeated_rows_count_once_and_are_said(tmp_path):
    text = "img/a.jpg lab/a.png\nimg/b.jpg lab/b.png\nimg/a.jpg lab/a.png\n"
    pairs, _, remarks = find_pairs(with_lists(tmp_path, text, *NAMES))
    assert relative(tmp_path, pairs["train"]) == TWO
    assert remarks == [f"{tmp_path}/train.txt: 1 repeated rows count once (lines 3)"]


@pytest.mark.parametrize("second", ["./img/a.jpg", "img/../img/a.jpg", "img//a.jpg", "{root}/img/a.jpg", "again/a.jpg"])
def test_one_picture_written_in_two_ways_counts_once(tmp_path, second):
    (tmp_path / "again").symlink_to(tmp_path / "img")
    text = f"./img/a.jpg lab/a.png\n{second.format(root=tmp_path)} lab/../lab/a.png\nimg/b.jpg lab/b.png\n"
    pairs, _, remarks = find_pairs(with_lists(tmp_path, text, *NAMES))
    assert [pair.id for pair in pairs["train"]] == ["img/a", "img/b"]
    assert "1 repeated rows count once (lines 2)" in remarks[0]
    with pytest.raises(DatasetError, match="line 3: .*a.jpg has another label than on line 1"):
        find_pairs(with_lists(tmp_path, text.replace("img/b.jpg", "img/./a.jpg")))


def test_ids_of_files_that_are_called_alike(tmp_path):
    names = ("a.jpg", "a.png", "a.jpg.png")
    pairs, _, _ = find_pairs(with_lists(tmp_path, "".join(f"{name} v.png\n" for name in names), *names))
    assert [pair.id for pair in pairs["train"]] == list(names)


def test_ids_stay_different(tmp_path):  # L25
    names = ("a/1.jpg", "b/1.jpg", "b/1.png", "m/1.png", "m/2.png", "m/3.png")
    text = f"a/1.jpg m/1.png\nb/1.jpg m/2.png\nb/1.png m/3.png\n{tmp_path}/v.jpg v.png\n"
    pairs, _, _ = find_pairs(with_lists(tmp_path, text, *names))
    assert [pair.id for pair in pairs["train"]] == ["a/1", "b/1.jpg", "b/1.png", "v"]


def test_a_test_list_may_have_labels_or_none(tmp_path):
    source = with_lists(tmp_path, "img/a.jpg lab/a.png\n", *NAMES)
    (tmp_path / "test.txt").write_text("img/b.jpg lab/b.png\n")
    assert relative(tmp_path, find_pairs(source)[0]["test"]) == TWO[1:]
    (tmp_path / "test.txt").write_text("img/b.jpg\nimg/a.jpg\n")
    pairs, problems, remarks = find_pairs(source)
    assert list(pairs) == ["train", "val"]
    assert not problems
    assert "test.txt has no labels" in remarks[0]


FOLDERS = ("images/train/a.jpg", "labels/train/a.png", "images/val/v.jpg", "labels/val/v.png")


def test_folders_are_matched_by_relative_stem(tmp_path):  # L26
    touch(tmp_path, *FOLDERS, "images/train/sub/a.JPEG", "labels/train/sub/a.bmp", "images/train/.DS_Store")
    touch(tmp_path, "images/train/x.y.png", "labels/train/x.y.png", "labels/train/._a.png")
    pairs, problems, remarks = find_pairs(tmp_path)
    assert relative(tmp_path, pairs["train"]) == [
        ("a", "images/train/a.jpg", "labels/train/a.png"),
        ("sub/a", "images/train/sub/a.JPEG", "labels/train/sub/a.bmp"),
        ("x.y", "images/train/x.y.png", "labels/train/x.y.png"),
    ]
    assert list(pairs) == ["train", "val"]
    assert (problems, remarks) == ([], [])


def test_labels_with_a_suffix(tmp_path):
    touch(tmp_path, "images/train/a.jpg", "images/train/sub/b_mask.jpg", "images/val/v.jpg", "images/val/w.jpg")
    touch(tmp_path, "labels/train/a_mask.png", "labels/train/sub/b_mask_mask.png", "labels/val/v_mask.png")
    touch(tmp_path, "labels/train/a_color.png", "labels/val/x_mask.png")
    pairs, problems, remarks = find_pairs(tmp_path, "_mask")
    assert relative(tmp_path, pairs["train"]) == [
        ("a", "images/train/a.jpg", "labels/train/a_mask.png"),
        ("sub/b_mask", "images/train/sub/b_mask.jpg", "labels/train/sub/b_mask_mask.png"),
    ]
    assert [pair.id for pair in pairs["val"]] == ["v"]
    assert [problem.message for problem in problems] == [
        f"{tmp_path}/images/val/w.jpg has no label (looked for labels/val/w_mask.*)",
        f"{tmp_path}/labels/val/x_mask.png has no image (looked for images/val/x.*)",
    ]
    assert len(remarks) == 1 and "1 labels without _mask" in remarks[0] and "a_color.png" in remarks[0]
    assert any("give --label_suffix=_mask" in remark for remark in find_pairs(tmp_path)[2])
    (tmp_path / "train.txt").write_text("images/train/a.jpg labels/train/a_mask.png\n")
    (tmp_path / "val.txt").write_text("images/val/v.jpg labels/val/v_mask.png\n")
    with pytest.raises(DatasetError, match="--label_suffix=_mask: .*train.txt names the labels"):
        find_pairs(tmp_path, "_mask")


def test_linked_folders_are_followed(tmp_path):
    touch(tmp_path / "elsewhere", "a.jpg")
    touch(tmp_path, "images/val/v.jpg", "labels/val/v.png", "labels/train/sub/a.png", "images/train/b.jpg")
    touch(tmp_path, "labels/train/b.png")
    (tmp_path / "images/train/sub").symlink_to(tmp_path / "elsewhere")
    assert [pair.id for pair in find_pairs(tmp_path)[0]["train"]] == ["b", "sub/a"]


def test_links_to_folders_above_are_not_followed(tmp_path):
    touch(tmp_path, *FOLDERS, "images/train/sub/b.jpg", "labels/train/sub/b.png")
    for kind in ("images", "labels"):
        for link, target in (("loop", "."), ("sub/up", "../.."), ("sub/round", "../sub")):
            (tmp_path / kind / "train" / link).symlink_to(target)
        elsewhere = tmp_path / "elsewhere" / kind
        touch(elsewhere, "c.jpg")
        (elsewhere / "back").symlink_to(tmp_path / kind / "train")
        (tmp_path / kind / "train" / "away").symlink_to(elsewhere)
    pairs, problems, _ = find_pairs(tmp_path)
    assert [pair.id for pair in pairs["train"]] == ["a", "away/c", "sub/b"]
    assert not problems


def test_every_unmatched_file_is_a_problem(tmp_path):
    touch(tmp_path, *FOLDERS, "images/train/b.jpg", "labels/train/c.png", "labels/val/sub/v.png")
    pairs, problems, _ = find_pairs(tmp_path)
    assert [pair.id for pair in pairs["train"]] == ["a"]
    assert [problem.message for problem in problems] == [
        f"{tmp_path}/images/train/b.jpg has no label (looked for labels/train/b.*)",
        f"{tmp_path}/labels/train/c.png has no image (looked for images/train/c.*)",
        f"{tmp_path}/labels/val/sub/v.png has no image (looked for images/val/sub/v.*)",
    ]


def test_two_pictures_of_one_name_are_refused(tmp_path):
    touch(tmp_path, *FOLDERS, "images/train/a.png")
    with pytest.raises(DatasetError, match=r"a\.jpg and .*a\.png have the same name"):
        find_pairs(tmp_path)


def test_lists_win_over_folders_and_it_is_said(tmp_path):
    touch(tmp_path, *FOLDERS)
    pairs, _, remarks = find_pairs(with_lists(tmp_path, "img/a.jpg lab/a.png\n", *NAMES))
    assert relative(tmp_path, pairs["train"]) == TWO[:1]
    assert remarks == [f"{tmp_path} has list files and folders: the lists count"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "no layout of pictures and labels"),
        (("images/a.jpg", "labels/a.png"), "no layout of pictures and labels"),
        (FOLDERS[:2], "no val split, for images/val is not there"),
        (FOLDERS[2:], "no train split"),
        (("train.txt",), r"no val split, for val\.txt is not there"),
    ],
)
def test_unknown_layouts_say_what_is_expected(tmp_path, names, message):
    touch(tmp_path, *names)
    with pytest.raises(DatasetError, match=message) as error:
        find_pairs(tmp_path)
    assert 'train.txt and val.txt (and test.txt) in it, with "image label"' in str(error.value)


def test_an_empty_folder_is_an_empty_split(tmp_path):
    touch(tmp_path, *FOLDERS[:2])
    (tmp_path / "images/val").mkdir()
    with pytest.raises(DatasetError, match="images/val: the val split is empty"):
        find_pairs(tmp_path)


def test_no_such_source(tmp_path):
    with pytest.raises(DatasetError, match="gone: no such folder"):
        find_pairs(tmp_path / "gone")
