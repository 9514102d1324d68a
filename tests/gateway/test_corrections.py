"""What a caller is shown of a request: its settlement, what is not known of it yet, and what came to be known."""

from typing import Any

from gateway.corrections import added, summed, usage_view
from gateway.recent import Recent

SETTLED = {
    "request_id": "r",
    "status": "ok",
    "input_tokens": 7,
    "output_tokens": 3,
    "gpu_us": 900,
    "certainty": "exact",
}
UNKNOWN = ("queue_us", "kv_block_us", "energy_uj")


def correction(**more: Any) -> dict[str, Any]:
    return {"request_id": "r", "status": "adjusted", "certainty": "exact", **more}


def test_before_the_engine_has_told_the_time_is_an_estimate_and_the_rest_is_not_known() -> None:
    view = usage_view(SETTLED, None)
    assert (view["object"], view["gpu_us"], view["gpu_us_is_estimate"]) == ("usage", 900, True)
    assert view["adjusted"] is None
    assert [view[name] for name in UNKNOWN] == [None, None, None]


def test_what_the_ledger_has_as_zero_is_not_known_either() -> None:
    view = usage_view({**SETTLED, **dict.fromkeys(UNKNOWN, 0)}, None)
    assert [view[name] for name in UNKNOWN] == [None, None, None]


def test_a_request_that_used_nothing_took_nothing_and_that_is_known() -> None:
    view = usage_view({"request_id": "r", "status": "refused", "certainty": "exact"}, None)
    assert (view["gpu_us"], view["gpu_us_is_estimate"], view["adjusted"]) == (0, False, None)
    assert [view[name] for name in UNKNOWN] == [0, 0, 0]


def test_corrections_stand_beside_the_settlement_as_their_sum() -> None:
    first = correction(
        gpu_us=-650, gpu_cost_nusd=-2, kv_block_us=40, queue_us=5, energy_uj=11, energy_source="measured"
    )
    more = correction(gpu_us=50, kv_block_us=2, certainty="at_least")
    view = usage_view(SETTLED, summed([first, more, correction()]))
    assert (view["gpu_us"], view["certainty"]) == (900, "exact"), "those of the settlement"
    assert view["adjusted"] == {
        "gpu_us": -600,
        "gpu_cost_nusd": -2,
        "queue_us": 5,
        "kv_block_us": 42,
        "energy_uj": 11,
        "energy_source": "measured",
        "certainty": "at_least",
    }


def test_an_energy_that_nobody_measured_or_estimated_is_not_zero() -> None:
    adjusted = usage_view(SETTLED, added(None, correction(gpu_us=1)))["adjusted"]
    assert (adjusted["gpu_us"], adjusted["energy_uj"], adjusted["energy_source"]) == (1, None, None)


def test_corrections_are_remembered_for_as_long_as_their_settlement() -> None:
    recent = Recent(rows_max=1)
    recent.correct(correction(gpu_us=9))
    assert recent.corrected("r") is None, "its settlement is not here, and the ledger has both"
    recent.add("r", {}, SETTLED)
    recent.correct(correction(gpu_us=-1))
    recent.correct(correction(gpu_us=-2))
    assert (recent.corrected("r") or {})["gpu_us"] == -3
    recent.add("s", {}, {})
    assert recent.corrected("r") is None
    recent.correct(correction(gpu_us=-4))
    assert recent.corrected("r") is None


def test_digests_of_prompts_are_not_shown() -> None:
    assert "prompt_blocks" not in usage_view({**SETTLED, "prompt_blocks": [1, 2]}, None)
