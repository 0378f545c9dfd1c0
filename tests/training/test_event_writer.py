"""The event file of a run, on a disk that does not take what is written."""

import errno
import resource

import numpy as np
import pytest
from etils import epath
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.plugins.hparams import metadata as hparams_metadata

from dlv3p_jax.configs import common
from dlv3p_jax.runtime import disk_errors, events
from dlv3p_jax.training import event_writer, trackers

SHEET = np.random.default_rng(0).integers(0, 255, (1, 200, 200, 3), np.uint8)  # 120 kB, which no buffer holds


@pytest.fixture
def limit():
    """Gives a function that lets no file grow beyond some bytes: Linux answers EFBIG. None: as before."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (soft if size is None else size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def steps_of(folder):
    return {name: [point.step for point in points] for name, points in events.read_scalars(folder).items()}


def test_what_is_written_is_found(tmp_path):
    folder = epath.Path(tmp_path)
    with event_writer.EventWriter(folder) as writer:
        for step in range(3):
            writer.write_scalars(step, {"a": step, "b": 1.0})
            writer.flush()
            writer.write_images(step, {"sheet": SHEET})
        writer.flush()
        writer.flush()
    with event_writer.EventWriter(folder) as writer:  # the run goes on
        writer.write_scalars(3, {"a": 3})
    assert steps_of(folder) == {"a": [0, 1, 2, 3], "b": [0, 1, 2]} and len(list(folder.iterdir())) == 2


def test_the_configuration_is_on_tensorboards_page_of_hparams(tmp_path):
    config = common.get_config()
    config.learning_rate = 0.5
    with event_writer.EventWriter(epath.Path(tmp_path)) as writer:
        writer.write_hparams(trackers.to_flat(config))
    read = event_accumulator.EventAccumulator(str(tmp_path)).Reload()
    content = read.SummaryMetadata(hparams_metadata.SESSION_START_INFO_TAG).plugin_data.content
    found = hparams_metadata.parse_session_start_info_plugin_data(content).hparams
    assert found["learning_rate"].number_value == 0.5 and found["model.backbone"].string_value == "resnet50_vd"
    assert found["eval.scales"].string_value == "(1.0,)" and found["eval.flip"].bool_value is False
    assert found.keys() == trackers.to_flat(config).keys()


def test_a_write_that_failed_is_told_with_the_file_when_the_disk_is_well_again(tmp_path, limit):
    """The limit is there for one write alone, of which TensorFlow's writer does not say that it failed."""
    writer = event_writer.EventWriter(epath.Path(tmp_path))
    writer.write_scalars(0, {"a": 0})
    writer.flush()
    (path,) = tmp_path.iterdir()
    limit(path.stat().st_size + 100)
    writer.write_images(0, {"sheet": SHEET})
    writer._writer.flush()
    limit(None)
    writer.write_scalars(1, {"a": 1})
    with pytest.raises(OSError) as caught:
        writer.flush()
    assert caught.value.filename == str(path) and caught.value.errno == errno.EIO
    assert disk_errors.passing(caught.value) and disk_errors.reason(caught.value) is None
    with pytest.raises(OSError):  # and again, until the run is started anew
        writer.flush()


def test_a_disk_that_takes_nothing_is_told_with_what_the_system_answers(tmp_path, limit):
    writer = event_writer.EventWriter(epath.Path(tmp_path))
    writer.write_scalars(0, {"a": 0})
    writer.flush()
    (path,) = tmp_path.iterdir()
    limit(path.stat().st_size + 100)
    writer.write_images(0, {"sheet": SHEET})
    with pytest.raises(OSError) as caught:
        writer.flush()
    assert caught.value.filename == str(path) and caught.value.errno == errno.EFBIG
