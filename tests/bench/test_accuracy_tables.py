"""The page of accuracies says what was measured, and claims no more."""

from pathlib import Path

import pytest

from bench.accuracy_tables import BEGIN, DOCS, END, coverage, write_docs
from bench.vllm_engine import SHAPES

RANKED = {
    "measured_unix_s": 1_700_000_000,
    "configurations": [
        {"knobs": {"max_num_seqs": 2}, "measured_us": 5_000.0, "noise_us": 10.0, "simulated_us": 4_000.0}
    ],
    "runs": 3,
    "pairs": 0,
    "tau": 0.9,
    "tau_min": 0.8,
}


def test_what_has_no_table_is_named() -> None:
    first, *others = (shape.name for shape in SHAPES)
    assert coverage({}).startswith("Measured: nothing yet. Not measured, so without a table: accuracy on")
    told = coverage({first: {"accuracy": {}}})
    assert told.startswith(f"Measured: accuracy on {first}. Not measured, so without a table:")
    assert all(f"accuracy on {name}" in told for name in others)
    assert told.endswith("ranking of configurations.")
    every = {shape.name: {"accuracy": {}, "ranking": {}} for shape in SHAPES}
    assert "Not measured" not in coverage(every)


def test_tables_stand_between_their_marks_with_what_they_are_of(tmp_path: Path) -> None:
    page = tmp_path / "accuracy.md"
    page.write_text(f"# Head\n\n{BEGIN}\nold\n{END}\ntail\n", encoding="utf-8")
    write_docs({SHAPES[0].name: {"ranking": RANKED}}, page)
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"# Head\n\n{BEGIN}\n\nMeasured: ranking of configurations. Not measured,")
    assert "old" not in text
    assert "| max_num_seqs 2 | 5.0 ms | 0.0 ms | 4.0 ms |" in text
    assert text.endswith(f"{END}\ntail\n")
    page.write_text("no marks", encoding="utf-8")
    with pytest.raises(ValueError, match="has no place for the tables"):
        write_docs({}, page)


def test_the_page_says_what_it_has_tables_of() -> None:
    """As it stands: whoever measures anew writes it anew."""
    text = DOCS.read_text(encoding="utf-8")
    said = [line for line in text.splitlines() if line.startswith("Measured: ")]
    shapes = [line.removeprefix("## ").partition(":") for line in text.splitlines() if line.startswith("## ")]
    kept: dict[str, dict[str, object]] = {}
    for name, _, title in shapes:
        kept.setdefault(name, {})["ranking" if "ranking" in title else "accuracy"] = {}
    assert said == [coverage(kept)]
