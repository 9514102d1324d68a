"""YAML with places: text that is no configuration is refused where it goes wrong, and cheaply."""

import time
from pathlib import Path

import pytest

from gateway.config_file import ConfigError, load
from gateway.config_yaml import DEPTH_MAX, NODES_MAX, Mark, read_document


def faults(content: bytes) -> list[tuple[int, int, str]]:
    return [(fault.mark.line, fault.mark.column, fault.message) for fault in read_document(content).faults]


def test_values_keep_the_place_of_their_names() -> None:
    document = read_document(b"a: 1\nb:\n  - x: [2, 3]\n    y: null\n")
    assert document.data == {"a": 1, "b": [{"x": [2, 3], "y": None}]}
    assert document.faults == []
    assert document.marks[("b",)] == Mark(2, 1)
    assert document.marks[("b", 0)] == Mark(3, 5)
    assert document.marks[("b", 0, "y")] == Mark(4, 5)
    assert document.marks[("b", 0, "x", 1)] == Mark(3, 12)


def test_a_name_that_comes_twice_is_a_fault_at_its_second_place() -> None:
    document = read_document(b"listen:\n  port: 1\n  host: h\n  port: 2\n")
    assert [(fault.mark, fault.location) for fault in document.faults] == [(Mark(4, 3), ("listen", "port"))]
    assert document.faults[0].message == "is named twice, first on line 2"
    assert document.data == {"listen": {"port": 1, "host": "h"}}


def test_a_duplicate_name_is_a_problem_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "bursar.yaml"
    file.write_text("version: 1\nversion: 1\n")
    with pytest.raises(ConfigError) as caught:
        load(file, {})
    assert f"{file}:2:1 version: is named twice, first on line 1" in str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("content", "line", "column", "message"),
    [
        (b"a: [1, 2\nb: 3\n", 2, 2, "expected ',' or ']', but got ':'"),
        (b"a: 1\n\tb: 2\n", 2, 1, "found character '\\t' that cannot start any token"),
        (b"a: 1\nb: \xff\n", 2, 4, "is not UTF-8"),
        (b"a: 1\nb: \x07\n", 2, 4, "a control character, which YAML does not allow"),
        (b"a: 1\n---\nb: 2\n", 2, 1, "but found another document"),
        (b"a: *nothing\n", 1, 4, "found undefined alias 'nothing'"),
        (b"a: !!python/object/apply:os.system [ls]\n", 1, 4, "tags are not supported"),
        (b"a: !secret b\n", 1, 4, "could not determine a constructor for the tag '!secret'"),
        (b"base: &b {x: 1}\na:\n  <<: *b\n", 3, 3, "merge keys (<<) are not supported: write the fields out"),
        (b"? [1, 2]\n: 3\n", 1, 3, "a field's name must be text"),
        (b"a: 2025-02-30\n", 1, 4, "is not a value: day is out of range for month"),
    ],
)
def test_what_is_not_a_configuration_is_named_by_its_place(
    content: bytes, line: int, column: int, message: str
) -> None:
    assert faults(content) == [(line, column, message)]


def test_aliases_that_multiply_themselves_are_cut_off_early() -> None:
    bomb = b"a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + b"".join(
        b"a%d: &a%d [%s]\n" % (level, level, b", ".join([b"*a%d" % (level - 1)] * 10)) for level in range(1, 12)
    )
    started_s = time.process_time()
    assert faults(bomb) == [(1, 1, f"holds more than {NODES_MAX} values")]
    assert time.process_time() - started_s < 30  # unbounded, it would be 10^12 values


def test_an_alias_within_itself_is_a_fault() -> None:
    assert [message for _, _, message in faults(b"a: &a [*a]\n")] == ["contains itself or nests too deep"]


def test_deep_nesting_is_a_fault_and_not_a_crash() -> None:
    assert [message for _, _, message in faults(b"[" * 100_000)] == [f"is nested deeper than {DEPTH_MAX} levels"]


def test_an_alias_used_twice_is_two_equal_values() -> None:
    assert read_document(b"a: &x [1]\nb: *x\n").data == {"a": [1], "b": [1]}


def test_an_empty_text_holds_nothing() -> None:
    assert read_document(b"").data is None
    assert faults(b"# only a comment\n") == []
