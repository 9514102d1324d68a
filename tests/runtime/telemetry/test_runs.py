"""Runs: which engines of a folder are gone is told from those that only have nothing to do."""

import pytest

from runtime.telemetry.runs import Heard, left_behind

QUIET = Heard(100, 100)


@pytest.mark.parametrize(
    ("engines", "shown", "gone"),
    [
        ({"engine-0": QUIET, "engine-1": Heard(103, 103)}, 2, set()),
        ({"engine-0": Heard(900, 950), "engine-1": Heard(103, 500)}, 1, {"engine-1"}),
        ({"engine-0": Heard(103, 500), "engine-1": Heard(900, 900)}, 1, {"engine-0"}),
        # It has said something since another was started, so it runs, whatever one of its front ends shows.
        ({"engine-0": Heard(900, 950), "engine-1": Heard(103, 901)}, 1, set()),
        # A runtime that does not answer may be one that is about to.
        ({"engine-0": Heard(900, 950), "engine-1": Heard(103, 500)}, None, set()),
        ({}, 1, set()),
    ],
)
def test_who_was_started_before_the_others_and_is_silent_since_is_gone(
    engines: dict[str, Heard], shown: int | None, gone: set[str]
) -> None:
    assert left_behind(engines, shown) == gone
