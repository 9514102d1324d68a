"""Faults are values: switched one by one, and refused where there is no such fault."""

from typing import Any

import pytest

from tests.proxy_faults import BadFault, Faults, Trigger


def test_faults_are_switched_one_by_one() -> None:
    first = Faults().changed({"to_server": {"delay_s": 0.5}})
    second = first.changed({"to_server": {"jitter_s": 0.25}, "lose_reply": {"command": "INCR", "times": 3}})
    assert (second.to_server.delay_s, second.to_server.jitter_s) == (0.5, 0.25)
    assert second.lose_reply == Trigger("INCR", 3)
    assert second.changed({"lose_reply": None}) == first.changed({"to_server": {"jitter_s": 0.25}})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"flood": True}, "no fault 'flood'; there are freeze"),
        ({"to_server": {"latency": 1}}, "it has delay_s"),
        ({"to_client": {"delay_s": -1}}, "not negative"),
        ({"freeze": 3}, "true or false"),
    ],
)
def test_an_unknown_fault_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(BadFault, match=said):
        Faults().changed(wrong)


def test_a_trigger_fires_as_often_as_it_was_told_and_only_for_its_command() -> None:
    trigger = Trigger("evalsha abc", 2)
    words = [("EVALSHA", "abc", "1"), ("EVALSHA", "other"), ("EVALSHA",), ("EVALSHA", "ABC"), ("EVALSHA", "abc")]
    assert [trigger.fires(each) for each in words] == [True, False, False, True, False]
    assert Trigger("*").fires(())
