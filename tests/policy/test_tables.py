"""Tables are held to the schemas that a bundle ships, and each mistake is named with the line where it stands."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from policy import tables
from policy.bundle import assemble, load
from policy.lint import Problem
from policy.port import BundleError
from policy.tables import Lines, dotted

WriteBundle = Callable[..., Path]
TABLE = "bursar/admission/data.json"
YAML = "bursar/admission/data.yaml"
SCHEMA = "schemas/data/admission.json"
CAPS: dict[str, Any] = {
    "type": "object",
    "required": ["rows"],
    "properties": {
        "rows": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "properties": {"cap": {"type": "integer"}, "tools": {"type": "array", "items": {"type": "string"}}},
                "additionalProperties": False,
            },
        },
        "priority": {"anyOf": [{"type": "integer", "maximum": 9}, {"type": "null"}]},
    },
}
GOOD = '{\n  "rows": {\n    "search": {\n      "cap": 10\n    }\n  }\n}'


def found(text: str, schema: Any = CAPS, table: str = TABLE, **more: str) -> list[Problem]:
    files = {
        "bursar/admission/admission.rego": "package bursar.admission\n\ndecision := 1\n",
        table: text,
        SCHEMA: schema if isinstance(schema, str) else json.dumps(schema),
        **more,
    }
    contents = {name: content.encode() for name, content in sorted(files.items())}
    return tables.problems(contents, assemble("bundle", contents).data)


def test_tables_that_conform_have_no_problems() -> None:
    assert found(GOOD) == []
    assert found("rows:\n  search: {cap: 10}\npriority:\n", table=YAML) == []


@pytest.mark.parametrize(
    ("table", "before", "after", "line", "said"),
    [
        (TABLE, '"cap": 10', '"cap": "10"', 4, "data.bursar.admission.rows.search.cap: '10' is not of type 'integer'"),
        (TABLE, '"cap": 10', '"kap": 10', 4, "data.bursar.admission.rows.search.kap: Additional properties"),
        (TABLE, '"cap": 10', '"tools": [\n"a",\n5]', 6, "data.bursar.admission.rows.search.tools[1]: 5 is not of type"),
        (TABLE, '"rows"', '"lines"', 1, "data.bursar.admission: 'rows' is a required property"),
        (TABLE, '"search"', '"a b"', 0, ""),
        (TABLE, '\n}', ',\n"priority": 11\n}', 7, "data.bursar.admission.priority: 11 is greater than the maximum"),
        (TABLE, '      "cap": 10', '\t\t\t"cap": 1.5', 4, "1.5 is not of type 'integer'"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_line(table: str, before: str, after: str, line: int, said: str) -> None:
    problems = found(GOOD.replace(before, after), table=table)
    if not line:
        assert problems == []
        return
    [problem] = problems
    assert (problem.file, problem.line) == (table, line)
    assert said in problem.message


def test_a_mistake_in_yaml_is_named_with_its_line() -> None:
    [problem] = found("# caps\nrows:\n  search:\n    cap: ten\n", table=YAML)
    assert problem == Problem(YAML, 4, "data.bursar.admission.rows.search.cap: 'ten' is not of type 'integer'")


def test_a_table_of_several_files_is_judged_as_one() -> None:
    more = {"bursar/data.json": '{\n"admission": {\n"priority": "high"\n}}'}
    [problem] = found(GOOD, **more)
    assert (problem.file, problem.line) == ("bursar/data.json", 3)


def test_every_mistake_is_named_up_to_a_bound() -> None:
    many = json.dumps({"rows": {f"team{number}": {"cap": "x"} for number in range(100)}}, indent=1)
    problems = found(many)
    assert len(problems) == tables.PROBLEMS_MAX
    assert [problem.line for problem in problems[:3]] == [4, 7, 34]  # of team0, team1, team10


def test_a_message_does_not_repeat_a_whole_table() -> None:
    [problem] = found(json.dumps({"rows": ["x" * 5_000]}))
    assert problem.message == "data.bursar.admission.rows: breaks the rule type: object"


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ("{", "unexpected end"),
        ({"type": "integr"}, "not a JSON schema that can be used"),
        ([], "not a JSON schema that can be used"),
        ({"$ref": "https://example.org/x.json"}, "refers to another document"),
        ({"$ref": "#/definitions/none"}, "refers to a definition that it does not have"),
    ],
)
def test_a_schema_that_cannot_be_used_is_a_problem_of_its_own(schema: Any, said: str) -> None:
    [problem] = found(GOOD, schema)
    assert problem.file == SCHEMA
    assert said in problem.message


def test_a_schema_of_no_table_is_a_problem() -> None:
    [problem] = found(GOOD, **{"schemas/data/launch/rules.json": "{}"})
    assert problem == Problem(
        "schemas/data/launch/rules.json", 0, "describes data.bursar.launch.rules, which no file of the bundle gives"
    )


def test_schemas_are_part_of_a_bundle_and_no_tables(write_bundle: WriteBundle) -> None:
    plain = load(write_bundle())
    with_schema = write_bundle({SCHEMA: '{"required": ["priority"]}', "schemas/input/x.json": "not read"})
    assert load(with_schema).data == plain.data
    assert load(with_schema).revision != plain.revision
    assert tables.check(with_schema) == []
    [problem] = tables.check(write_bundle({SCHEMA: '{"required": ["rows"]}'}))
    assert (problem.file, problem.line) == (TABLE, 1)


def test_a_bundle_with_a_wrong_table_is_refused() -> None:
    contents = {TABLE: GOOD.encode(), SCHEMA: b'{"required": ["priority"]}'}
    with pytest.raises(BundleError, match=r"data.json:1: data.bursar.admission: 'priority' is a required property"):
        tables.require(contents, {"bursar": {"admission": json.loads(GOOD)}})


def test_paths_are_written_as_in_rego() -> None:
    assert dotted(("bursar", "rows", "*", 0, "a-b", 'q"')) == 'data.bursar.rows["*"][0]["a-b"]["q\\""]'


def test_the_line_of_what_is_nowhere_is_that_of_what_is_around_it() -> None:
    contents = {TABLE: GOOD.encode()}
    assert Lines(contents).of(("bursar", "admission", "rows", "search", "missing", 3)) == (TABLE, 3)
    assert Lines(contents).of(("elsewhere",)) == ("", 0)
    assert Lines({TABLE: b'{"a": '}).of(("bursar", "admission", "a")) == (TABLE, 0)
