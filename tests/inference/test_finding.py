"""Which picture files are found, in which order, and what their outputs are called."""

import errno
import json
import os

import pytest

from dlv3p_jax.inference.finding import find_pictures

FILES = ("a/1.jpg", "b/1.jpg", "b/c/2.PNG", "b/2.jpg", "b/2.png", ".hidden/3.png", "out/labels/1.png", "b/x.txt")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Empty files: nothing here opens one."""
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def find(*paths):
    """Files by the names of their outputs, in order."""
    pictures, problems = find_pictures(paths, "out")
    assert not problems
    return [(picture.name, os.path.relpath(picture.path)) for picture in pictures]


B = [("1", "b/1.jpg"), ("2.jpg", "b/2.jpg"), ("2.png", "b/2.png"), ("c/2", "b/c/2.PNG")]  # 2 alike but for extensions
ALL = [("a/1", "a/1.jpg"), ("b/1", "b/1.jpg"), ("b/2.jpg", "b/2.jpg"), ("b/2.png", "b/2.png"), ("b/c/2", "b/c/2.PNG")]


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["a"], [("1", "a/1.jpg")]),
        (["b/1.jpg", "a/1.jpg"], [("b/1", "b/1.jpg"), ("a/1", "a/1.jpg")]),
        (["b", "b/1.jpg", "b/c"], B),
        (["."], ALL),
        (["b/x.txt"], [("x", "b/x.txt")]),  # whoever names a file wants it
        (["*/1.jpg"], [("a/1", "a/1.jpg"), ("b/1", "b/1.jpg")]),
        (["b/*"], B),
        (["**/*.jpg"], [("a/1", "a/1.jpg"), ("b/1", "b/1.jpg"), ("b/2", "b/2.jpg")]),
        (["**"], ALL),
        (["b/**/2.*"], [("2.jpg", "b/2.jpg"), ("2.png", "b/2.png"), ("c/2", "b/c/2.PNG")]),
        (["b/[12].jpg", "a"], [("b/1", "b/1.jpg"), ("b/2", "b/2.jpg"), ("a/1", "a/1.jpg")]),
    ],
)
def test_every_picture_is_found_once_and_names_mirror_folders(folder, paths, expected):
    assert find(*paths) == expected


@pytest.mark.parametrize(
    ("paths", "expected"), [(["b"], B), (["b/**"], B), (["b/**/2.*"], B[1:]), (["**/1.jpg"], [ALL[0], ALL[1]])]
)
def test_links_to_folders_above_are_not_followed(folder, paths, expected):
    for link, target in (("b/loop", "."), ("b/again", "../b"), ("b/c/up", "../..")):
        os.symlink(target, link)
    assert find(*paths) == expected


def test_the_folder_of_outputs_changes_nothing(folder):
    os.rename("b", ".b")
    assert find("*") == find("a", "out") == [("1", "a/1.jpg")]
    pictures, problems = find_pictures(["out"], "out")
    assert not pictures and "no pictures beside those" in problems[0].message


def test_pictures_beside_the_outputs_are_found(folder):
    (folder / "out" / "photos").mkdir()
    (folder / "out" / "photos" / "4.jpg").touch()
    for paths, output in ((["out/photos"], "out"), (["out"], "out"), (["out/photos"], ".")):
        pictures, problems = find_pictures(paths, output)
        assert [os.path.relpath(picture.path) for picture in pictures] == ["out/photos/4.jpg"] and not problems


def test_outputs_are_left_out_by_whichever_link_they_are_reached(folder):
    (folder / "link").symlink_to("out")
    (folder / "out" / "4.jpg").touch()
    for path, output in (("out", "link"), ("link", "out"), ("link/*", "out"), ("out/**", "link")):
        pictures, problems = find_pictures([path], output)
        assert [picture.path.name for picture in pictures] == ["4.jpg"] and not problems, (path, output)
        assert find_pictures([f"{path.partition('/')[0]}/labels"], output)[0] == []


def test_pictures_of_others_that_are_left_out_are_named(folder, caplog):
    record = folder / "out" / "predict.jsonl"
    (folder / "out" / "4.jpg").touch()
    find_pictures(["out"], "out")
    assert f"1 pictures in {folder}/out/labels, where outputs go, are left out, such as {folder}/out/labels/1.png" in (
        caplog.text
    )
    record.write_text("{}\n" + "".join(json.dumps({"name": name}) + "\n" for name in ("1", "a/b")))
    (folder / "out" / "results").mkdir()
    (folder / "out" / "results" / "b.png").touch()
    caplog.clear()
    find_pictures(["out"], "out")
    assert not caplog.text
    (folder / "out" / "results" / "mine.png").touch()
    find_pictures(["out"], "out")
    assert f"such as {folder}/out/results/mine.png" in caplog.text


@pytest.mark.parametrize("pattern", ["*/1.jpg", "a/*.jpg", "**/1.jpg"])
def test_a_glob_stops_at_a_folder_that_cannot_be_read(folder, monkeypatch, pattern):
    """As one of a network, of which a part came: what is beyond would be left out without a word."""
    unread = str(folder) if pattern == "*/1.jpg" else str(folder / "a")

    def away(function):
        def read(path="."):
            if os.path.abspath(path) == unread:
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
            return function(path)

        return read

    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, away(getattr(os, name)))
    with pytest.raises(OSError, match=unread):
        find(pattern)


def test_brackets_in_a_name_are_no_glob(folder):
    os.rename("a/1.jpg", "a/weed [1].jpg")
    assert find("a/weed [1].jpg") == [("weed [1]", "a/weed [1].jpg")]


def test_names_stay_apart_whatever_files_are_called(folder):
    (folder / "b" / "2.jpg.png").touch()
    names = [name for name, _ in find("b")]
    assert len(set(names)) == len(names) == 5


def test_what_is_not_there_or_cannot_be_read_is_told_and_changes_no_name(folder, monkeypatch):
    (folder / "a" / "empty").mkdir()
    pictures, problems = find_pictures(["a/1.jpg", "/no/such/2.jpg", "c*/*.jpg", "a/empty"])
    assert [picture.name for picture in pictures] == ["1"]
    assert [problem.message for problem in problems] == [
        "/no/such/2.jpg: no such file or folder",
        f"{folder}/c*/*.jpg: no such file or folder",
        f"{folder}/a/empty: no pictures in this folder",
    ]
    assert find_pictures(["none.png"])[0] == []

    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("b/c"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    pictures, problems = find_pictures(["b"])
    assert [problem.message for problem in problems] == [f"{folder}/b/c: cannot be read (Permission denied)"]
    assert len(pictures) == 3
    _, problems = find_pictures(["b/c"])  # and nothing of pictures that it may hold
    assert [problem.message for problem in problems] == [f"{folder}/b/c: cannot be read (Permission denied)"]


def test_what_is_left_out_is_told_with_its_endings(folder, caplog):
    for name in ("a/IMG_1.HEIC", "a/IMG_2.HEIC", "a/film.mp4", "b/.hidden.mp4"):
        (folder / name).touch()
    assert [path for _, path in find("a/*")] == ["a/1.jpg"]
    assert "2 .heic, 1 .mp4" in caplog.text and "IMG_1.HEIC" in caplog.text and "hidden" not in caplog.text
    pictures, problems = find_pictures(["a/*.HEIC"])
    assert not pictures and "2 .heic" in problems[0].message and "no such file" not in problems[0].message
