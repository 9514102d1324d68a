"""A changed bundle counts as looser unless recorded inputs, decided again, show nothing of it, and can."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from domain.decision import Decision, Obligations, Reason
from gateway.loosening_bundle import (
    REPLAY_S_MAX,
    REPLAYED_MAX,
    Policies,
    Replay,
    bundle_loosenings,
    flip,
    replay,
    weaker,
)
from policy.port import EngineAway, EvaluationError, PolicyInput, Undefined, Unfinished, canonical

INPUT = canonical(PolicyInput("acme", "search", "web", (), "internal", "chat", "plain").document())
DENIED = {"allow": False, "reasons": [{"code": "no", "message": "No."}], "obligations": {}}
ADMISSION, TOOLS, TERMS, RULES = (
    f"bursar/{name}" for name in ("admission/data.json", "tools/data.json", "budget/data.json", "admission/a.rego")
)
ADMITS = "package bursar.admission\n\nimport rego.v1\n\nadmits(x) if x > 1\n"
OLD = Policies(
    "sha256:1",
    {ADMISSION: b'{"cap": 5}', TOOLS: b"{}", TERMS: b'{"terms": {"small": 1}}', RULES: ADMITS.encode()},
)


def decision(allow: bool = True, **obligations: Any) -> Decision:
    reasons = () if allow else (Reason("no", "No."),)
    return Decision("d", allow, reasons, Obligations(**obligations), OLD.revision, "digest", INPUT)


def allowed(**obligations: Any) -> dict[str, Any]:
    return {"allow": True, "reasons": [], "obligations": obligations}


def answering(value: object) -> Callable[[bytes], Awaitable[object]]:
    async def evaluate(input_json: bytes) -> object:
        assert input_json == INPUT
        if isinstance(value, Exception):
            raise value
        return value

    return evaluate


def changed(file: str, content: str) -> Policies:
    return Policies("sha256:2", {**OLD.files, file: content.encode()})


@pytest.mark.parametrize(
    ("before", "after", "names"),
    [
        ({}, {}, []),
        ({"max_output_tokens": 5}, {"max_output_tokens": 5}, []),
        ({"max_output_tokens": 5}, {"max_output_tokens": 4}, []),
        ({"max_output_tokens": 5}, {"max_output_tokens": 6}, ["max_output_tokens"]),
        ({"max_output_tokens": 5}, {}, ["max_output_tokens"]),
        ({}, {"max_output_tokens": 5}, []),
        ({"max_input_tokens": 5}, {}, ["max_input_tokens"]),
        ({"blocked_tools": ("a", "b")}, {"blocked_tools": ("b", "a", "c")}, []),
        ({"blocked_tools": ("a", "b")}, {"blocked_tools": ("a",)}, ["blocked_tools"]),
        ({"verify": ("pii", "human")}, {"verify": ("pii",)}, ["verify"]),
        ({"verify": ()}, {"verify": ("pii",)}, []),
        ({"cache_domain": "team"}, {"cache_domain": "app"}, []),
        ({"cache_domain": "team"}, {"cache_domain": "org"}, ["cache_domain"]),
        ({"priority": 1, "queue_ms_max": 0}, {"priority": 9, "queue_ms_max": 9, "shrink_to_fit": True}, []),
    ],
)
def test_obligations_that_bind_less_are_named(before: dict[str, Any], after: dict[str, Any], names: list[str]) -> None:
    assert [name for name, _, _ in weaker(Obligations(**before), Obligations(**after))] == names


def test_what_was_denied_and_is_admitted_is_a_flip_and_the_other_way_is_none() -> None:
    (found,) = flip(decision(allow=False), Obligations(), allow=True)
    assert found.path == "admission of acme/search/web to plain (chat, budget ok, risk normal)"
    assert (found.before, found.after) == ("denied: no", "allowed")
    assert list(flip(decision(), Obligations(), allow=False)) == []
    assert list(flip(decision(allow=False), Obligations(), allow=False)) == []


async def test_recorded_inputs_are_decided_again_with_the_new_bundle() -> None:
    found = await replay([decision(allow=False), decision(max_output_tokens=5)], answering(allowed()))
    assert (found.decided, len(found.flips), found.is_whole) == (2, 2, True)
    found = await replay([decision(allow=False), decision()], answering(DENIED))
    assert found == Replay(2)


@pytest.mark.parametrize("value", [EvaluationError("no"), Undefined("none"), {"allow": "yes"}, None])
async def test_what_the_new_bundle_cannot_decide_is_denied_and_so_no_looser(value: object) -> None:
    assert await replay([decision(max_output_tokens=5)], answering(value)) == Replay(1)


@pytest.mark.parametrize("value", [EngineAway("away"), Unfinished("too long")])
async def test_an_engine_that_is_away_or_does_not_end_has_shown_nothing(value: Exception) -> None:
    """Given more time, or an idle machine, it might admit: that it did not end is no denial."""
    found = await replay([decision(allow=False)] * 3, answering(value))
    assert found == Replay(0, is_whole=False)
    assert bundle_loosenings(OLD, changed(ADMISSION, '{"cap": 6}'), found)


async def test_for_so_long_at_most_inputs_are_decided_again() -> None:
    times = iter([0.0, 1.0, REPLAY_S_MAX, REPLAY_S_MAX + 1])
    found = await replay([decision()] * 9, answering(allowed()), lambda: next(times))
    assert (found.decided, found.is_whole) == (2, False)


async def test_so_many_inputs_at_most_are_decided_again() -> None:
    found = await replay([decision()] * (REPLAYED_MAX + 1), answering(allowed()))
    assert found.decided == REPLAYED_MAX


def test_the_same_revision_loosens_nothing() -> None:
    assert bundle_loosenings(OLD, OLD, None) == []


def test_only_a_change_of_admissions_that_flips_nothing_recorded_is_no_looser() -> None:
    assert bundle_loosenings(OLD, changed(ADMISSION, '{"cap": 6}'), Replay(3)) == []
    assert bundle_loosenings(OLD, changed(RULES, ADMITS.replace("x > 1", "x > 2")), Replay(3)) == []
    assert bundle_loosenings(OLD, changed(TERMS, '{"terms": {"small": 2}}'), Replay(3)) == []


def test_a_change_of_admissions_that_flips_something_is_listed_with_what_flips() -> None:
    flips = tuple(flip(decision(allow=False), Obligations(), allow=True))
    found = bundle_loosenings(OLD, changed(ADMISSION, '{"cap": 6}'), Replay(3, flips))
    assert [each.path for each in found] == [flips[0].path, "data.bursar.admission.cap"]
    assert (found[1].before, found[1].after) == (5, 6)


@pytest.mark.parametrize(
    ("after", "shown", "says"),
    [
        (changed(ADMISSION, '{"cap": 6}'), None, "approvals.bundle is always"),
        (changed(ADMISSION, '{"cap": 6}'), Replay(0), "no recorded inputs"),
        (changed(ADMISSION, '{"cap": 6}'), Replay(2, is_whole=False), "could not all be decided again"),
        (changed(TOOLS, '{"registry": {"shell": 1}}'), Replay(3), "only admissions are decided again"),
        (changed("bursar/risk/new.rego", "package bursar.risk\n\nscoring := 1\n"), Replay(3), "only admissions are"),
        (Policies("sha256:2"), Replay(3), "are not known"),
    ],
)
def test_what_nothing_can_be_shown_of_counts_as_looser(after: Policies, shown: Replay | None, says: str) -> None:
    (found,) = bundle_loosenings(OLD, after, shown)
    assert says in found.why
    assert found.path.startswith(("policy", "data.bursar."))


def test_only_what_nothing_is_known_of_is_listed() -> None:
    after = Policies("sha256:2", {**OLD.files, ADMISSION: b'{"cap": 6}', TOOLS: b'{"open": true}'})
    (found,) = bundle_loosenings(OLD, after, Replay(3))
    assert (found.path, found.before, found.after) == ("data.bursar.tools.open", None, True)


READS = Policies(
    "sha256:1",
    {
        ADMISSION: b'{"rows": {"acme": {"search": {"web": {"offers": {}, "blocked_tools": {"a/b": true}}}}}, "cap": 5}',
        RULES: b"""package bursar.admission

import rego.v1

import data.bursar.tools

decision := tools.checks

offered(tool) if not _row.blocked_tools[tool]

_row := data.bursar.admission.rows[input.org][input.team][input.app]

cap := data.bursar.admission.cap
""",
        "bursar/tools/tools.rego": b"""package bursar.tools

import rego.v1

import data.bursar.admission as other

checks := []

decision if other.offered(input.tool)
""",
    },
)


@pytest.mark.parametrize(
    ("file", "old", "new", "path"),
    [
        (ADMISSION, '"a/b": true', '"a/b": false', 'rows.acme.search.web.blocked_tools["a/b"]'),
        (ADMISSION, '{"a/b": true}', "{}", 'rows.acme.search.web.blocked_tools["a/b"]'),
        (ADMISSION, '"search": {', '"new": {"web": {"offers": {}}}, "search": {', "rows.acme.new"),
        (RULES, "[input.app]", '["web"]', "_row"),
        (RULES, "if not _row", "if _row", "offered"),
        (RULES, "import data.bursar.tools", "import data.bursar.risk as tools", "import"),
    ],
)
def test_what_of_admissions_other_packages_read_counts_as_looser(file: str, old: str, new: str, path: str) -> None:
    """No admission that is decided again tells of the tools of a server: these are decided when they are called."""
    after = Policies("sha256:2", {**READS.files, file: READS.files[file].decode().replace(old, new).encode()})
    (found,) = bundle_loosenings(READS, after, Replay(3))
    assert (found.path, "only admissions" in found.why) == (f"data.bursar.admission.{path}", True)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        (ADMISSION, '"cap": 5', '"cap": 6'),
        (ADMISSION, '"offers": {}', '"offers": {"large": "x"}'),
        (ADMISSION, '"a/b": true', '"a/b": true, "c/d": true'),
        (RULES, "cap := data", "cap := 1 + data"),
    ],
)
def test_what_only_admissions_read_and_a_tool_that_is_blocked_are_decided_again(file: str, old: str, new: str) -> None:
    after = Policies("sha256:2", {**READS.files, file: READS.files[file].decode().replace(old, new).encode()})
    assert after.files != READS.files
    assert bundle_loosenings(READS, after, Replay(3)) == []


@pytest.mark.parametrize(
    ("reads", "is_listed"),
    [("data.bursar.budget.terms.small", True), ("data.bursar.budget", True), ("data.bursar.budget.least", False)],
)
def test_terms_that_another_package_reads_count_as_looser(reads: str, *, is_listed: bool) -> None:
    reader = {"bursar/change/change.rego": f"package bursar.change\n\ncap := {reads}\n".encode()}
    before = Policies("sha256:1", {**OLD.files, **reader})
    after = Policies("sha256:2", {**before.files, TERMS: b'{"terms": {"small": 2}}'})
    assert bool(bundle_loosenings(before, after, Replay(3))) is is_listed


@pytest.mark.parametrize(
    "reads",
    [
        "not data.bursar.admission.rows[input.org][input.team][input.app].blocked_tools[input.tool]",
        'not other.row["blocked_tools"][input.tool]',
    ],
)
def test_a_field_of_a_row_that_another_package_reads_by_itself_counts_as_looser(reads: str) -> None:
    rules = READS.files[RULES].decode().replace("_row", "row").encode()
    tools = f"package bursar.tools\n\nimport data.bursar.admission as other\n\ndecision if {reads}\n".encode()
    before = Policies("sha256:1", {**READS.files, RULES: rules, "bursar/tools/tools.rego": tools})
    row = before.files[ADMISSION].replace(b"true", b"false")
    (found,) = bundle_loosenings(before, Policies("sha256:2", {**before.files, ADMISSION: row}), Replay(3))
    assert found.path == 'data.bursar.admission.rows.acme.search.web.blocked_tools["a/b"]'


@pytest.mark.parametrize(("reads", "is_listed"), [("capped", True), ("offered", False)])
def test_a_term_that_another_package_reads_through_a_rule_of_admissions_counts_as_looser(
    reads: str, *, is_listed: bool
) -> None:
    rules = READS.files[RULES] + b"\ncapped if data.bursar.budget.terms.small == input.calls\n"
    tools = READS.files["bursar/tools/tools.rego"].replace(b"other.offered(input.tool)", f"other.{reads}".encode())
    files = {**READS.files, RULES: rules, "bursar/tools/tools.rego": tools, TERMS: b'{"terms": {"small": 1}}'}
    after = Policies("sha256:2", {**files, TERMS: b'{"terms": {"small": 2}}'})
    assert bool(bundle_loosenings(Policies("sha256:1", files), after, Replay(3))) is is_listed


def test_a_rule_that_changes_is_named_with_its_place() -> None:
    (found,) = bundle_loosenings(OLD, changed(RULES, ADMITS.replace("x > 1", "x > 0")), None)
    assert (found.path, found.after) == ("data.bursar.admission.admits", f"changed, {RULES}:5")


def test_comments_and_tests_decide_nothing_so_changing_them_loosens_nothing() -> None:
    assert bundle_loosenings(OLD, changed(RULES, f"# Who may.\n{ADMITS}"), None) == []
    assert bundle_loosenings(OLD, changed("bursar/admission/a_test.rego", "package bursar.other\n"), None) == []
