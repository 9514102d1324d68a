"""A bundle names a check in its tables or its rules; schemas and tests of a bundle oblige nobody."""

import pytest

from policy.bundle import load
from policy.checks.named import named
from tests.policy.conftest import SHIPPED

RULES = 'package bursar.tools\n\nimport rego.v1\n\ndecision := {"allow": true, "obligations": {"verify": [%s]}}\n'


@pytest.mark.parametrize(
    ("file", "text", "found"),
    [
        ("bursar/tools/data.json", '{"obliged": {"large": [["pii"], "secrets"]}}', ("secrets", "pii")),
        ("bursar/tools/data.yaml", "obliged: {pii: true}", ("pii",)),
        ("bursar/tools/data.json", '{"obliged": ["not pii"]}', ()),
        ("bursar/tools/tools.rego", RULES % '"human", "pii"', ("pii", "human")),
        ("bursar/tools/tools.rego", RULES % "`secrets`", ("secrets",)),
        ("bursar/tools/tools.rego", RULES % '""' + '# "pii"\npii := 1\n', ()),
        ("bursar/tools/tools_test.rego", RULES % '"pii"', ()),
        ("schemas/data/tools.json", '{"enum": ["pii"]}', ()),
    ],
)
def test_a_check_is_found_where_policy_may_oblige_it(
    write_bundle, file: str, text: str, found: tuple[str, ...]
) -> None:
    assert named(load(write_bundle({file: text}))) == found


def test_the_shipped_bundle_needs_no_library_of_its_checks() -> None:
    assert not {"secrets", "pii"} & set(named(load(SHIPPED)))
