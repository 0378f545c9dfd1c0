"""Two processes that save both kinds of checkpoint at every step; what `save_at_every_step` does hundreds of times."""

import re

import save_at_every_step

from dlv3p_jax.weights import checkpoint_reading


def test_saves_of_both_kinds_at_every_step_do_not_meet_and_a_preemption_right_after_one_is_answered(data_dir, tmp_path):
    """In step 12, one process is told to leave as soon as the best of this step is on its way: both leave with 75."""
    codes, output = save_at_every_step.run(
        tmp_path, data_dir, 2, {"LEAVE_AT": "12 in 1"}, num_train_steps=1000, keep_checkpoints=2
    )
    assert codes == [75, 75], output[-5000:]
    # After a step, or in its evaluation.
    left = re.search(r"(?:told to leave;|SIGTERM:) step (\d+) is saved in .*latest/\1,", output)
    assert left and 12 <= int(left[1]) < 30 and "Traceback" not in output, output[-5000:]
    latest, best = (checkpoint_reading.find(tmp_path / "checkpoints" / kind) for kind in ("latest", "best"))
    assert latest.name == left[1] and int(left[1]) - int(best.name) in (0, 1)  # told while it evaluated, or after
    for path in (latest, best):  # whole, with the digests of what both processes wrote
        checkpoint_reading.read_model(path)
