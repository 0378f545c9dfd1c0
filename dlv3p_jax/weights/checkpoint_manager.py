"""Orbax's manager of checkpoints, with what it lacks: digests of the files, barriers of its own, one that is kept."""

import orbax.checkpoint as ocp
from etils import epath

from dlv3p_jax.weights import checkpoint_digests


class KeepOne:
    """Has Orbax delete, when a new checkpoint is whole, all others than that of `step`."""

    step: int | None = None

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        return [info.step == self.step for info in checkpoints]


class Manager(ocp.CheckpointManager):
    """Orbax's, with the digests of its files in every checkpoint, and with barriers of its own.

    It leaves it to the training loop to ask for preemption. Orbax asks too, with the number of a step, in a background
    thread when this step is long past, which takes JAX's count back: processes would not agree on where to leave, and
    wait for each other.
    """

    def __init__(self, directory: epath.Path, **options):
        self._step_written: int | None = None
        super().__init__(
            directory,
            options=ocp.CheckpointManagerOptions(
                cleanup_tmp_directories="://" not in str(directory),  # in a bucket, it takes whole ones for such
                multiprocessing_options=ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=directory.name),
                async_options=ocp.AsyncOptions(
                    post_finalization_callback=self._write_digests,
                    # Else threads that are to write wait for the folders for 300 s where these cannot be made, and
                    # Python does not end before they do.
                    create_directories_asynchronously=False,
                ),
                **options,
            ),
        )

    def save(self, step: int, *args, **kwargs) -> bool:
        self.wait_until_finished()
        self._step_written = step
        return super().save(step, *args, **kwargs)

    def reached_preemption(self, step: int) -> bool:
        return False

    def _write_digests(self) -> None:
        """Is called by Orbax, in one process, when all files are written and before they count as a checkpoint."""
        final = self.directory / str(self._step_written)
        kind = ocp.path.atomicity_defaults.get_default_temporary_path_class(final)
        checkpoint_digests.write(kind.from_final(final).get())
