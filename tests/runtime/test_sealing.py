"""Damaged files of a run: an error that names them, or what was written; never another number without a word."""

import json

import numpy as np
import pytest
from etils import epath
from made_runs import write_evaluation, write_events

from dlv3p_jax.configs import common
from dlv3p_jax.evaluation import files
from dlv3p_jax.inference import folder_record
from dlv3p_jax.runtime import configuration, events, sealing


def damages(data: bytes, number: int = 40):
    """Single flipped bits, ends cut off and stretches of zeros, spread over a file, and whether they are at its end."""
    places = np.linspace(0, len(data) - 1, number).astype(int).tolist()
    for index, place in enumerate(places):
        flipped = bytearray(data)
        flipped[place] ^= 1 << index % 8
        yield f"bit {index % 8} of byte {place} flipped", bytes(flipped), place + 16 >= len(data)
        yield f"cut at {place}", data[:place], True
        zeros = bytes(len(data[place : place + 16]))
        yield f"zeros at {place}", data[:place] + zeros + data[place + 16 :], place + 16 >= len(data)


def make_config(folder):
    configuration.write(common.get_config(), epath.Path(folder / "config.json"))
    return [folder / "config.json"], lambda: configuration.to_dict(configuration.read(folder / "config.json"))


def make_evaluation(folder):
    write_evaluation(folder, "plain", 4, 0.4, sealed=True)
    keys = sorted(json.loads((folder / "eval" / "4.plain.json").read_text(encoding="utf-8")).keys() - {sealing.KEY})

    def read():
        (found,) = files.read(epath.Path(folder))
        pictures = found.pictures and (found.pictures.ids, found.pictures.counts.tolist(), found.pictures.shown)
        return [found.report[key] for key in keys], found.scores["IoU"].tolist()[:3], pictures

    return [folder / "eval" / "4.plain.json", folder / "eval" / "4.plain.npz"], read


def make_record(folder):
    how = {"weights": "0" * 64, "checkpoint": "workdir", "views": {"flip": False}}
    entries = [folder_record.Entry(f"a{n}", f"/p/a{n}.jpg", 1000 + n, 10**18 + n, (n, 2, 3)) for n in range(5)]
    folder_record.write_record(folder, how, entries)
    return [folder / folder_record.RECORD], lambda: list(folder_record.read_record(folder, how).values())


def make_events(folder):
    path = folder / "events.out.tfevents.1.host.1.0.v2"
    write_events(path, range(10, 70, 10), 0)
    told = []

    def read():
        points = events.read_scalars(epath.Path(folder), told.append).get("train/loss", [])
        if told:
            raise ValueError(told.pop())
        return points

    return [path], read


@pytest.mark.parametrize("make", [make_config, make_evaluation, make_record, make_events])
def test_a_damaged_file_is_an_error_or_what_was_written(make, tmp_path):
    paths, read = make(tmp_path)
    written = read()
    for path in paths:
        whole, refused = path.read_bytes(), 0
        for what, data, at_end in damages(whole):
            path.write_bytes(data)
            try:
                found = read()
            except ValueError as error:
                assert str(path) in str(error) and "\n" not in str(error), (what, error)
                refused += 1
            else:
                unfinished = isinstance(written, list) and at_end  # a killed run leaves the last line so
                assert found == (written[: len(found)] if unfinished else written), what
        assert refused > 40
        path.write_bytes(whole)
    assert read() == written


def test_what_was_written_before_there_were_seals_is_read_as_it_is():
    assert sealing.unseal({"a": 1}) == {"a": 1}
    assert sealing.unseal(json.loads(json.dumps(sealing.seal({"a": (1, 2.5)})))) == {"a": [1, 2.5]}
    with pytest.raises(ValueError, match=sealing.KEY):
        sealing.unseal(sealing.seal({"a": 1}) | {"a": 2})
