"""How results are printed: as tables that break no figure, and turned where they would."""

import sys
from typing import Any

import pytest

from gateway.cli import output
from gateway.cli.output import print_report
from ledger.reports import report

WIDTHS = (80, 100, 160)


def printed(
    rows: list[dict[str, Any]], columns: tuple[str, ...], width: int, patch: pytest.MonkeyPatch, capsys: Any
) -> list[str]:
    patch.setattr(output, "_PIPED_COLUMNS", width)
    print_report("Title", rows, columns, as_json=False)
    lines: list[str] = capsys.readouterr().out.splitlines()
    return lines


def gpu_rows(count: int) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    columns = report("gpu").columns
    figures: dict[str, Any] = {name: f"{number}01234.567890" for number, name in enumerate(columns)}
    shown: dict[str, Any] = {**figures, "requests": 1_234_567, "conservation_error_percent": None}
    return [{**shown, "runtime": f"gpu-{number}"} for number in range(count)], columns


@pytest.mark.parametrize("width", WIDTHS)
def test_no_name_and_no_figure_of_the_gpu_report_is_broken(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    rows, columns = gpu_rows(7)
    lines = printed(rows, columns, width, monkeypatch, capsys)
    assert max(map(len, lines)) <= width
    words = " ".join(lines).split()
    for column in columns[3:]:
        if column != "conservation_error_percent":
            assert words.count(rows[0][column]) == 7
        assert column in words
    assert {f"gpu-{number}" for number in range(7)} <= set(words)
    assert words.count("1,234,567") == 7


def test_as_many_rows_as_fit_stand_beside_each_other(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    rows, columns = gpu_rows(7)
    lines = printed(rows, columns, 100, monkeypatch, capsys)
    heads = [line for line in lines if "gpu-" in line]
    assert lines.count("Title") == 1
    assert [line.count("gpu-") for line in heads] == [4, 3]


def test_what_fits_across_is_not_turned(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    rows = [{"team": "search", "why": "a sentence that may well be folded " * 9, "requests": 12}]
    lines = printed(rows, tuple(rows[0]), 80, monkeypatch, capsys)
    assert any("team" in line and "requests" in line for line in lines)
    assert printed([], ("team", "x" * 200), 80, monkeypatch, capsys)[0].strip() == "Title"


def test_json_is_never_turned(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(output, "_PIPED_COLUMNS", 10)
    print_report("Title", [{"a": 1, "b": "x"}], ("a", "b"), as_json=True)
    assert capsys.readouterr().out == '[\n  {\n    "a": 1,\n    "b": "x"\n  }\n]\n'


def test_a_terminal_is_asked_for_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "77")
    assert output.console().width == 77
