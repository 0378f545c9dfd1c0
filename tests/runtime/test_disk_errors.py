"""What is said of disks that are full or away, from errors as Python, TensorStore and TensorFlow raise them."""

import errno
import os

import jax
import pytest
import tensorflow as tf
import tensorstore as ts

from dlv3p_jax.runtime import disk_errors, files


def raised_from(inner, text="flush failed"):
    try:
        try:
            raise inner
        except type(inner) as error:
            raise RuntimeError(text) from error
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    "number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.EREMOTEIO, errno.EHOSTDOWN]
)
def test_what_passes_by_itself_is_told_by_errno_and_by_quoted_words(number):
    words = os.strerror(number)
    for error in (
        OSError(number, words),
        raised_from(OSError(number, words, "/a/file")),
        ValueError(f'Error opening "a/manifest.ocdbt": [OS error {number}: {words}]'),
        tf.errors.UnknownError(None, None, f"a/file; {words}"),
    ):
        assert disk_errors.passing(error) == words and disk_errors.reason(error) is None


def test_states_of_buckets_pass_and_those_of_devices_do_not():
    assert disk_errors.passing(ValueError("UNAVAILABLE: Error reading gs://bucket/a")) == "UNAVAILABLE"
    assert disk_errors.passing(tf.errors.UnavailableError(None, None, "curl")) == "UnavailableError"
    gone = jax.errors.JaxRuntimeError("UNAVAILABLE: the coordinator is gone: Connection refused")
    assert disk_errors.passing(gone) is disk_errors.passing(raised_from(gone, str(gone))) is None


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.ENAMETOOLONG, errno.ENOSPC, errno.EROFS])
def test_what_somebody_has_to_mend_does_not_pass(number):
    assert disk_errors.passing(OSError(number, os.strerror(number))) is None


def test_a_lock_that_another_holds_does_not_pass(tmp_path):
    with files.lock(tmp_path / "lock"), pytest.raises(files.Locked) as caught, files.lock(tmp_path / "lock"):
        pass
    assert disk_errors.passing(caught.value) is None


def test_tensorstores_own_words_are_known(tmp_path):
    """A link to itself: TensorStore quotes the system as it does for those errors that cannot be made here."""
    (tmp_path / "a").symlink_to("a")
    store = ts.KvStore.open({"driver": "file", "path": f"{tmp_path}/"}).result()
    with pytest.raises(Exception) as caught:
        store.read("a").result()
    assert os.strerror(errno.ELOOP) in str(caught.value), "the words are looked for in the text"


def test_it_is_tried_again_while_it_passes_and_no_longer():
    answers = [OSError(errno.EIO, "x"), OSError(errno.ESTALE, "x"), 7]

    def action():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert disk_errors.patiently(action, (0, 0)) == 7
    answers[:] = [OSError(errno.EIO, "first"), OSError(errno.EIO, "second"), 7]
    with pytest.raises(OSError, match="second"):
        disk_errors.patiently(action, (0,))
    answers[:] = [OSError(errno.ENOENT, "first"), 7]
    with pytest.raises(FileNotFoundError):
        disk_errors.patiently(action, (0, 0))
    assert answers == [7]


def test_a_full_disk_is_recognised_through_what_was_raised_from_it():
    error = raised_from(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert disk_errors.reason(error) == "no space is left on the device: make room"
    assert "read-only" in disk_errors.reason(ValueError("[OS error 30: EROFS Read-only file system]"))
    assert disk_errors.reason(ValueError("another")) is None
