"""Tool calls held to what was offered: each by a name that was, with arguments that its schema allows."""

from typing import Any

from policy.checks.json_schema import is_object, nonconformities
from policy.checks.port import Finding

FUNCTION = "function"
FINDINGS_MAX = 16


def find(calls: list[dict[str, Any]], offered: dict[str, Any]) -> list[Finding]:
    """What is wrong with these calls, each {where, kind, name, arguments}; raises SchemaRefused.

    `offered` has the schema of each tool's parameters by `kind name`, None where it has none.
    """
    found: list[Finding] = []
    for call in calls:
        found += _of_one(call, offered)
        if len(found) >= FINDINGS_MAX:
            break
    return found[:FINDINGS_MAX]


def _of_one(call: dict[str, Any], offered: dict[str, Any]) -> list[Finding]:
    key, where = f"{call['kind']} {call['name']}", call["where"]
    if key not in offered:
        return [Finding("not_offered", where)]
    if call["kind"] != FUNCTION:
        return []
    # A function without parameters is called with nothing at all by some models.
    text = call["arguments"] or "{}"
    if not is_object(text):
        return [Finding("arguments_not_a_json_object", where)]
    schema = offered[key]
    return [] if schema is None else nonconformities(text, schema, f"{where} arguments")
