"""local.py: when it starts a run again; tests/runtime/test_processes.py runs it."""

import pytest
from recorded import MAIN, script

local = script("local.py")


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([0], (0, False)),
        ([75, 75], (75, True)),
        ([-9, 75], (75, True)),  # one was killed, and the other says so
        ([-9, -9], (137, True)),
        ([75, 0], (75, True)),
        ([-15, -15], (75, True)),  # told to leave before they could hear it
        ([70, 70], (70, False)),
        ([-9, 70], (70, False)),
        ([1, 75], (1, False)),
        ([75, 1], (1, False)),
        ([130, -9], (130, False)),
    ],
)
def test_local_starts_again_what_was_killed_or_says_so(codes, expected):
    assert local.exit_code(codes) == expected


@pytest.mark.parametrize(("code", "more", "starts"), [(137, [], 5), (75, ["--mode=eval"], 5), (75, [], 7)])
def test_local_does_not_start_for_ever_what_brings_nothing(monkeypatch, code, more, starts):
    ends = [(code, True)] * 6 + [(1, False)]
    monkeypatch.setattr(local, "_run", lambda *_: ends.pop(0))
    monkeypatch.setattr(local, "_pass_signals_on", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        local.main(["launch/local.py", *MAIN, *more])
    assert 7 - len(ends) == starts and ended.value.code == (1 if starts == 7 else code)
