"""Videos in, videos and labels out (dlv3p_jax.predict); the segmenter stands aside, so that nothing is compiled."""

import types
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from dlv3p_jax.data import viz
from dlv3p_jax.inference import finding, folder_record, outputs, videos

av = pytest.importorskip("av", reason="PyAV is not installed")
SIZE = (48, 65)


def write_video(path, shades, times):
    """Grey frames of these shades at these times, in milliseconds."""
    with av.open(str(path), "w") as video:
        stream = video.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = SIZE[1], SIZE[0], "yuv444p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for shade, time in zip(shades, times, strict=True):
            frame = av.VideoFrame.from_ndarray(np.full((*SIZE, 3), shade, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            video.mux(stream.encode(frame))
        video.mux(stream.encode())


class Bright:
    """Calls what is brighter than 127 class 1; remembers how many pictures it was given at once."""

    classes, palette = ("dark", "bright"), np.array([[200, 0, 0], [0, 0, 200]], np.uint8)

    def __init__(self):
        self.together = []

    def __call__(self, images, batch_size):
        assert len(images) <= batch_size
        self.together.append(len(images))
        return [(image[..., 0] > 127).astype(np.int32) for image in images]


def make_ledger(output):
    return folder_record.Ledger(output, {"weights": "w", "checkpoint": "c"}, overwrite=False)


def test_frames_keep_their_times_and_a_few_are_in_memory(tmp_path):
    shades, times = [20, 220, 20, 220, 220], [0, 40, 200, 240, 1000]
    write_video(tmp_path / "a.mkv", shades, times)
    (tmp_path / "b.mp4").write_bytes(b"no video")
    assert finding.is_video(str(tmp_path / "a.mkv")) and not finding.is_video(str(tmp_path / "none.mp4"))
    segmenter, values = Bright(), outputs.label_values(2, Bright.palette, False, None)
    paths = [str(tmp_path / name) for name in ("a.mkv", "b.mp4")]
    pixels, problems = videos.write_all(paths, segmenter, tmp_path / "out", values, 2, make_ledger(tmp_path / "out"))
    assert segmenter.together == [2, 2, 1]
    assert pixels.tolist() == [2 * 48 * 65, 3 * 48 * 65]
    assert [problem.id for problem in problems] == [paths[1]] and "no video that can be read" in problems[0].message
    assert [path.name for path in (tmp_path / "out" / "videos").iterdir()] == ["a.mp4"]
    with av.open(str(tmp_path / "out" / "videos" / "a.mp4")) as video:
        frames = list(video.decode(video=0))
    assert [round(1000 * frame.time) for frame in frames] == times
    for number, (frame, shade) in enumerate(zip(frames, shades, strict=True), start=1):
        label = np.full(SIZE, shade > 127)
        expected = viz.overlay(np.full((*SIZE, 3), shade, np.uint8), label.astype(np.uint8), Bright.palette)[:, :64]
        assert np.abs(frame.to_ndarray(format="rgb24") - expected.astype(float)).mean() < 8  # a codec with losses
        with Image.open(tmp_path / "out" / "labels" / "a" / f"{number:06d}.png") as written:
            np.testing.assert_array_equal(np.asarray(written), label)

    again, _ = videos.write_all(paths[:1], segmenter, tmp_path / "out", values, 2, make_ledger(tmp_path / "out"))
    assert again.tolist() == pixels.tolist() and len(segmenter.together) == 3  # it is there
    (tmp_path / "other").mkdir()
    write_video(tmp_path / "other" / "a.mkv", [20], [0])
    other = [str(tmp_path / "other" / "a.mkv")]
    with pytest.raises(ValueError, match="other/a.mkv: give another --output, or --overwrite"):
        videos.write_all(other, segmenter, tmp_path / "out", None, 2, make_ledger(tmp_path / "out"))


def test_frames_are_written_after_a_run_without_them(tmp_path):
    write_video(tmp_path / "a.mp4", [20, 220], [0, 40])
    values, output = outputs.label_values(2, Bright.palette, False, None), tmp_path / "out"
    videos.write_all([str(tmp_path / "a.mp4")], Bright(), output, None, 2, make_ledger(output))
    assert not (output / "labels").exists()
    videos.write_all([str(tmp_path / "a.mp4")], Bright(), output, values, 2, make_ledger(output))
    assert len(list((output / "labels" / "a").iterdir())) == 2


def test_frames_are_those_of_the_video_alone_and_made_again_where_they_are_gone(tmp_path):
    values, output, path = outputs.label_values(2, Bright.palette, False, None), tmp_path / "out", tmp_path / "a.mp4"

    def run():
        segmenter = Bright()
        videos.write_all([str(path)], segmenter, output, values, 4, make_ledger(output))
        return segmenter.together, sorted(each.name for each in (output / "labels" / "a").iterdir())

    write_video(path, [20, 220, 20], [0, 40, 80])
    names = ["000001.png", "000002.png", "000003.png"]
    assert run() == ([3], names) and run() == ([], names)
    for gone in ("labels/a/000002.png", "overlays/a/000003.jpg"):
        (output / gone).unlink()
        assert run() == ([3], names) and (output / gone).exists()
    write_video(path, [20, 220], [0, 40])
    assert run() == ([2], names[:2])
    assert len(list((output / "overlays" / "a").iterdir())) == 2


def test_frames_and_pictures_do_not_take_each_others_places(tmp_path):
    output, how = tmp_path / "out", {"weights": "w", "checkpoint": "c"}
    output.mkdir()
    write_video(tmp_path / "a.mp4", [20], [0])
    folder_record.write_record(output, how, [folder_record.Entry("a/000001", "x/a/000001.png", 1, 1, (1, 0))])
    values = outputs.label_values(2, Bright.palette, False, None)
    with pytest.raises(ValueError, match="labels/a is of the picture a/000001, and would now be of .*a.mp4: give"):
        videos.write_all([str(tmp_path / "a.mp4")], Bright(), output, values, 1, make_ledger(output))


def test_two_of_one_name_and_a_missing_package(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="two videos are called a"):
        videos.write_all(["x/a.mp4", "y/a.mkv"], Bright(), tmp_path, None, 1, make_ledger(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ValueError, match=r"pip install 'dlv3p_jax\[video\]'"):
        videos.write_all([], Bright(), tmp_path, None, 1, make_ledger(tmp_path))


def test_a_turned_frame_stands_upright():
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    frame = types.SimpleNamespace(to_ndarray=lambda format: image, rotation=-90)  # FFmpeg's, counter-clockwise
    np.testing.assert_array_equal(videos._upright(frame), np.rot90(image, -1))
