"""Arithmetic of rows, and how they are kept."""

from io import StringIO
from pathlib import Path

import orjson
import pytest
from rich.console import Console

from bench.errors import MeasurementError
from bench.row import Row, load_rows, replace_rows, table


def row(name: str, ours: float) -> Row:
    return Row.against(name, "µs", ours, 100.0, "bare proxy", 1.5)


@pytest.mark.parametrize(("ours", "ratio", "met"), [(149.0, 1.49, True), (150.0, 1.5, True), (151.0, 1.51, False)])
def test_a_ratio_meets_its_target_up_to_and_including_it(ours: float, ratio: float, met: bool) -> None:
    measured = row("unary_vs_bare", ours)
    assert (measured.ratio, measured.met) == (ratio, met)


def test_rounding_what_is_shown_decides_nothing() -> None:
    measured = Row.against("unary_vs_litellm", "µs", 250.001, 10_000.0, "LiteLLM", 1 / 40)
    assert (measured.ratio, measured.target, measured.met) == (0.025, 0.025, False)


def test_a_reference_without_a_target_is_compared_and_not_judged() -> None:
    measured = Row.against("latency", "ms", 0.4, 0.2, "bare proxy", None)
    assert (measured.ratio, measured.target, measured.met) == (2.0, None, None)


def test_a_reference_lost_in_noise_gives_no_ratio() -> None:
    assert Row.against("latency", "ms", 0.4, -0.1, "bare proxy", None).ratio is None


def test_a_reference_lost_in_noise_fails_a_row_with_a_target() -> None:
    with pytest.raises(MeasurementError, match="bare proxy measured 0"):
        Row.against("unary_vs_bare", "µs", 0.4, 0, "bare proxy", 1.5)


def test_absolute_targets_are_bounds_from_above_or_below() -> None:
    assert Row.at_most("policy_hit_us", "µs", 5.0, 5.0).met is True
    assert Row.at_most("policy_hit_us", "µs", 5.1, 5.0).met is False
    assert Row.at_least("ledger_ingest_rows_per_s", "rows/s", 30_000, 30_000).met is True
    assert Row.at_least("ledger_ingest_rows_per_s", "rows/s", 29_999, 30_000).met is False


def test_rows_come_back_from_the_file_as_they_were(results: Path) -> None:
    rows = [row("a", 120.0), Row.at_most("b", "µs", 3.0, 5.0)]
    replace_rows(results, rows, asked=["a", "b"])
    assert load_rows(results) == rows


def test_the_file_holds_exactly_the_published_fields(results: Path) -> None:
    replace_rows(results, [row("a", 120.0)], asked=["a"])
    assert orjson.loads(results.read_bytes()) == [
        {
            "name": "a",
            "unit": "µs",
            "ours": 120.0,
            "reference": 100.0,
            "reference_name": "bare proxy",
            "ratio": 1.2,
            "target": 1.5,
            "met": True,
        }
    ]


def test_a_row_measured_again_replaces_its_old_one_and_leaves_the_others(results: Path) -> None:
    replace_rows(results, [row("a", 120.0), row("b", 130.0)], asked=["a", "b"])
    replace_rows(results, [row("a", 140.0)], asked=["a"])
    assert {kept.name: kept.ours for kept in load_rows(results)} == {"a": 140.0, "b": 130.0}


def test_a_row_that_could_not_be_measured_leaves_no_old_number(results: Path) -> None:
    replace_rows(results, [row("a", 120.0), row("b", 130.0)], asked=["a", "b"])
    replace_rows(results, [], asked=["a"])
    assert [kept.name for kept in load_rows(results)] == ["b"]


def test_a_file_of_something_else_is_not_overwritten(results: Path) -> None:
    results.parent.mkdir()
    results.write_text('[{"name": "a"}]')
    with pytest.raises(ValueError, match="does not hold benchmark rows"):
        replace_rows(results, [row("a", 120.0)], asked=["a"])
    assert results.read_text() == '[{"name": "a"}]'


def test_the_table_shows_every_row_and_what_was_missed() -> None:
    shown = StringIO()
    Console(width=140, file=shown).print(table([row("unary_vs_bare", 120.0), row("unary_all_vs_bare", 190.0)]))
    met, missed = [line for line in shown.getvalue().splitlines() if "vs_bare" in line]
    assert [cell.strip() for cell in met.strip("│").split("│")][-3:] == ["1.2", "1.5", "yes"]
    assert [cell.strip() for cell in missed.strip("│").split("│")][-3:] == ["1.9", "1.5", "no"]
