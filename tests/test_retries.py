import pytest
from scripted_llm import ScriptedLLM

from embedtune.llms import retries
from embedtune.llms.errors import BatchMissingError, TemporaryError
from embedtune.llms.protocol import Completion, Request
from embedtune.llms.retries import ask, retrying


def failing(error, *, times):
    """A function that fails some times, and then returns how often it was called."""
    calls = []

    def function():
        calls.append(1)
        if len(calls) <= times:
            raise error
        return len(calls)

    return function


def test_a_temporary_error_is_tried_again_and_the_last_one_is_raised():
    assert retrying(3, sleep=lambda seconds: None)(failing(TemporaryError("busy"), times=2)) == 3
    with pytest.raises(TemporaryError, match="busy"):
        retrying(3, sleep=lambda seconds: None)(failing(TemporaryError("busy"), times=3))


def test_other_errors_are_raised_at_once():
    function = failing(KeyError("usage"), times=1)
    with pytest.raises(KeyError):
        retrying(3, sleep=lambda seconds: None)(function)
    assert function() == 2


def test_pauses_grow_and_stay_below_a_minute():
    paused = []
    with pytest.raises(TemporaryError):
        retrying(20, sleep=paused.append)(failing(TemporaryError("busy"), times=20))
    assert len(paused) == 19
    assert all(0.25 <= seconds <= min(60.0, max(0.25, 0.5 * 2**i)) for i, seconds in enumerate(paused))
    assert max(paused) > 10


@pytest.mark.parametrize(("asked", "waited"), [(0.0, 0.0), (3.0, 3.0), (86_400.0, 60.0)])
def test_a_server_is_waited_for_as_long_as_it_asks_but_no_more_than_a_minute(asked, waited):
    paused = []
    retrying(3, sleep=paused.append)(failing(TemporaryError("busy", retry_after=asked), times=2))
    assert paused == [waited, waited]


def test_a_missing_batch_is_given_up_sooner():
    paused = []
    with pytest.raises(BatchMissingError):
        retrying(15, sleep=paused.append)(failing(BatchMissingError("gone"), times=15))
    assert len(paused) == BatchMissingError.max_tries - 1


def test_asking_tries_three_times(monkeypatch):
    monkeypatch.setattr(retries, "seconds_to_wait", lambda state: 0.0)
    request = Request("Be brief.", "Well?", {"properties": {}})
    assert ask(ScriptedLLM(lambda _: "fine", failures=2), request) == Completion("fine")
    with pytest.raises(TemporaryError):
        ask(ScriptedLLM(lambda _: "fine", failures=3), request)
