"""The checks of one request: the cheapest first, the first to fail ends it, and what cannot be made has failed."""

from types import SimpleNamespace
from typing import Any

import pytest

from domain.decision import Decision, Obligations
from domain.intent import Principal
from gateway import errors
from gateway.approvals import Approvals, Person, SamePerson, State
from gateway.errors import Refusal
from gateway.kept import KeptAnswers
from gateway.repeats import Answer
from gateway.verification import FAILED, PASSED, ToolVerdict, Verification, Verifier
from gateway.verification_config import SecondModel, Verify
from ledger.journal import JournalFull
from policy.checks import port
from policy.checks.pieces import SPAN_CHARS
from policy.checks.port import CheckFailed, Finding, SchemaRefused
from policy.port import PolicyUnavailable

ROW = {"request_id": "r1", "org": "acme", "team": "search", "app": "web"}
BODY = {"messages": [{"role": "user", "content": "hello"}]}
FORMED = {**BODY, "response_format": {"type": "json_object"}}
CALLS = [{"index": 0, "type": "function", "function": {"name": "add", "arguments": "{}"}}]


class Process:
    """Finds what it is told to, and remembers what it was asked."""

    def __init__(self, **found: Any) -> None:
        self.found = found
        self.asked: list[str] = []
        self.given: dict[str, list[dict[str, Any]]] = {}
        self.warmed: list[str] = []

    async def find(self, check: str, given: dict[str, Any]) -> list[Finding]:
        self.asked.append(check)
        self.given.setdefault(check, []).append(given)
        found = self.found.get(check, [])
        if isinstance(found, Exception):
            raise found
        return list(found)

    def warm(self, checks: list[str]) -> None:
        self.warmed += checks


class Rows:
    """Controls whose journal may be full."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure

    def record(self, action: str, actor: str, subject: str, *, digest: str = "", detail: Any = None) -> None:
        if self.failure is not None:
            raise self.failure


class Noted(list[tuple[str, str, Any]]):
    def note(self, name: str, row: dict[str, Any], count: int, detail: dict[str, Any]) -> None:
        assert (row, count) == (ROW, 1)
        self.append((name, detail["check"], detail.get("kinds")))


def admitted(*verify: str) -> Any:
    decision = Decision(
        "d1", allow=True, reasons=(), obligations=Obligations(verify=verify), revision="", input_digest=""
    )
    intent = SimpleNamespace(principal=Principal("acme", "search", "web", "", "k1"), request_id="r1")
    return SimpleNamespace(decision=decision, ask=SimpleNamespace(intent=intent), hold=SimpleNamespace(row=ROW))


async def allowed(admitted: Any, calls: Any) -> ToolVerdict:
    return ToolVerdict(allow=True)


def verifier(process: Process, noted: Noted | None = None, **more: Any) -> Verifier:
    async def judge(admitted: Any, request: str, answer: str) -> str:
        return more.get("verdict", "")

    parts: dict[str, Any] = {
        "config": Verify(approval_wait_s=0, schema_bytes_max=100),
        "process": process,
        "now_us": lambda: 1_000_000,
        "kept": KeptAnswers(more.get("kept_max", 10), 1000, 60),
        "requester": lambda principal: Person(principal.key_id, line=frozenset({principal.key_id, "maker"})),
        "tool_asked": allowed,
        "judge": judge,
        "approvals": Approvals(more.get("rows", Rows()), lambda: 1_000_000),
        "note": (Noted() if noted is None else noted).note,
    }
    return Verifier(**{**parts, **{name: more[name] for name in more.keys() & parts.keys()}})


async def begun(verifier: Verifier, *verify: str, body: Any = BODY) -> Verification:
    verification = await verifier.begin(admitted(*verify), body)
    assert isinstance(verification, Verification)
    return verification


def answer(content: str | None = "fine", **message: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": content, **message}}]}


def keep() -> Answer:
    return Answer([], b"{}")


async def whole(verification: Verification, said: dict[str, Any] | None = None) -> Refusal | None:
    return await verification.whole(said or answer(), keep, generates=True)


async def test_checks_are_made_in_the_order_of_their_cost_and_each_is_noted() -> None:
    process, noted = Process(), Noted()
    verification = await begun(
        verifier(process, noted), "second_model", "pii", "json_schema", "secrets", "tool_calls", body=FORMED
    )
    assert verification.header == (b"x-bursar-verified", b"tool_calls,secrets,json_schema,pii,second_model")
    assert await whole(verification, answer("fine", tool_calls=CALLS)) is None
    assert process.asked == ["json_schema", "tool_calls", "secrets", "json_schema", "pii"]
    assert process.warmed == ["tool_calls", "secrets", "json_schema", "pii"]
    names = ("tool_calls", "secrets", "json_schema", "pii", "second_model")
    assert noted == [(PASSED, name, None) for name in names]


async def test_the_first_check_to_fail_ends_it() -> None:
    process, noted = Process(secrets=[Finding("Private Key", "choice 0 content line 1")] * 2), Noted()
    refusal = await whole(await begun(verifier(process, noted), "pii", "secrets", "second_model"))
    assert refusal is not None
    assert refusal.kind is errors.VERIFICATION_FAILED
    place = {"kind": "Private Key", "where": "choice 0 content line 1"}
    assert refusal.detail == {"check": "secrets", "kinds": ["Private Key"], "findings": [place, place]}
    assert process.asked == ["secrets"]
    assert noted == [(FAILED, "secrets", ["Private Key"])]


@pytest.mark.parametrize(
    ("check", "trouble", "kind"),
    [
        ("secrets", CheckFailed("timeout", "it took too long"), "timeout"),
        ("pii", CheckFailed("crash", "it ended"), "crash"),
        ("tool_calls", SchemaRefused("it is not an object"), "schema_refused"),
    ],
)
async def test_a_check_that_could_not_be_made_has_failed(check: str, trouble: Exception, kind: str) -> None:
    noted = Noted()
    refusal = await whole(
        await begun(verifier(Process(**{check: trouble}), noted), check), answer("x", tool_calls=CALLS)
    )
    assert refusal is not None
    assert refusal.detail["kinds"] == [kind]
    assert str(trouble) in refusal.message
    assert noted == [(FAILED, check, [kind])]


@pytest.mark.parametrize("names", [("astrology",), ("secrets", "pii2"), ("",)])
async def test_an_unknown_check_is_refused_before_anything_is_sent(names: tuple[str, ...]) -> None:
    refusal = await verifier(Process()).begin(admitted(*names), BODY)
    assert isinstance(refusal, Refusal)
    assert refusal.kind is errors.POLICY_UNAVAILABLE
    assert names[-1] in refusal.message


async def test_a_missing_library_is_refused_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(port.LIBRARIES, "pii", "presidio_that_is_not_there")
    refusal = await verifier(Process()).begin(admitted("pii"), BODY)
    assert isinstance(refusal, Refusal)
    assert refusal.kind is errors.POLICY_UNAVAILABLE
    assert "pii needs presidio_that_is_not_there; install the extra `verify`" in refusal.message


@pytest.mark.parametrize(
    ("name", "part"), [("second_model", "judge"), ("human", "approvals"), ("tool_calls", "tool_asked")]
)
async def test_a_check_that_is_not_set_up_is_refused_before_anything_is_sent(name: str, part: str) -> None:
    refusal = await verifier(Process(), **{part: None}).begin(admitted(name), BODY)
    assert isinstance(refusal, Refusal)
    assert refusal.kind is errors.POLICY_UNAVAILABLE
    assert f"not configured here: {name}" in refusal.message


@pytest.mark.parametrize(
    ("trouble", "kind"),
    [
        (SchemaRefused("it is no schema"), errors.INVALID_REQUEST),
        (CheckFailed("crash", "it ended"), errors.POLICY_UNAVAILABLE),
    ],
)
async def test_a_schema_is_tried_before_anything_is_sent(trouble: Exception, kind: Any) -> None:
    refusal = await verifier(Process(json_schema=trouble)).begin(admitted("json_schema"), FORMED)
    assert isinstance(refusal, Refusal)
    assert refusal.kind is kind
    assert str(trouble) in refusal.message


async def test_a_schema_is_tried_once_and_bounded() -> None:
    process = Process()
    verifying = verifier(process)
    for _ in range(3):
        await begun(verifying, "json_schema", body=FORMED)
    assert process.asked == ["json_schema"]
    large = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["x" * 100]}}}
    refusal = await verifying.begin(admitted("json_schema"), {**BODY, "response_format": large})
    assert isinstance(refusal, Refusal)
    assert refusal.param == "response_format"
    assert "larger than 100 bytes" in refusal.message


async def test_tools_that_policy_denies_or_cannot_decide_on_are_not_passed_on() -> None:
    async def denied(admitted: Any, calls: Any) -> ToolVerdict:
        return ToolVerdict(allow=False, codes=("no_tools_today",))

    async def silent(admitted: Any, calls: Any) -> ToolVerdict:
        return ToolVerdict(allow=False)

    async def away(admitted: Any, calls: Any) -> ToolVerdict:
        raise PolicyUnavailable("it is away")

    async def unwritten(admitted: Any, calls: Any) -> ToolVerdict:
        raise JournalFull("full")

    for asked, kind in (
        (denied, "no_tools_today"),
        (silent, "tool_denied"),
        (away, "policy_unavailable"),
        (unwritten, "policy_unavailable"),
    ):
        verification = await begun(verifier(Process(), tool_asked=asked), "tool_calls")
        refusal = await whole(verification, answer(None, tool_calls=CALLS))
        assert refusal is not None
        assert (refusal.detail["check"], refusal.detail["kinds"]) == ("tool_calls", [kind])
        assert await whole(verification, answer("no call at all")) is None


async def test_a_tool_that_wants_a_check_that_there_is_not_is_not_passed_on() -> None:
    async def dreaming(admitted: Any, calls: Any) -> ToolVerdict:
        return ToolVerdict(allow=True, verify=("secrets", "astrology"))

    verification = await begun(verifier(Process(), tool_asked=dreaming), "tool_calls")
    refusal = await whole(verification, answer(None, tool_calls=CALLS))
    assert refusal is not None
    assert refusal.detail["kinds"] == ["unknown_check"]
    assert "astrology" in refusal.message


async def test_a_tool_may_want_further_checks_of_the_whole_answer() -> None:
    async def guarded(admitted: Any, calls: Any) -> ToolVerdict:
        return ToolVerdict(allow=True, verify=("pii", "secrets"))

    process, noted = Process(pii=[Finding("EMAIL_ADDRESS", "x")]), Noted()
    verification = await begun(verifier(process, noted, tool_asked=guarded), "tool_calls")
    refusal = await whole(verification, answer(None, tool_calls=CALLS))
    assert refusal is not None
    assert refusal.detail["check"] == "pii"
    assert process.asked == ["tool_calls", "secrets", "pii"]
    assert noted == [(FAILED, "pii", ["EMAIL_ADDRESS"])]


async def test_further_checks_see_all_that_waits_and_what_arguments_spell_out() -> None:
    async def guarded(admitted: Any, calls: Any) -> ToolVerdict:
        return ToolVerdict(allow=True, verify=("secrets",))

    process = Process()
    verification = await begun(verifier(process, tool_asked=guarded), "tool_calls")
    calls = [{"type": "function", "function": {"name": "add", "arguments": '{"a": "\\u0053"}'}}]
    said = answer("fine", tool_calls=calls, reasoning_content="as I thought")
    assert await whole(verification, said) is None
    seen = [text for given in process.given["secrets"] for _, _, text in given["texts"]]
    assert {"fine", "as I thought", '{"a": "S"}'} <= set(seen)


async def test_the_second_model_sees_every_text_that_would_be_released() -> None:
    seen: list[str] = []

    async def judge(admitted: Any, request: str, answer: str) -> str:
        seen.append(answer)
        return ""

    verification = await begun(verifier(Process(), judge=judge), "second_model")
    assert await whole(verification, answer("fine", reasoning_content="as I thought", refusal="no")) is None
    assert seen == ["fine\n\nas I thought\n\nno"]


@pytest.mark.parametrize("name", ["return_token_ids", "return_tokens_as_token_ids"])
async def test_an_answer_in_token_ids_is_refused_before_anything_is_sent(name: str) -> None:
    refusal = await verifier(Process()).begin(admitted("secrets"), {**BODY, name: True})
    assert isinstance(refusal, Refusal)
    assert (refusal.kind, refusal.param) == (errors.INVALID_REQUEST, name)
    assert isinstance(await verifier(Process()).begin(admitted("secrets"), {**BODY, name: False}), Verification)


@pytest.mark.parametrize("verdict", ["not_released", "verdict_unclear"])
async def test_what_the_second_model_does_not_release_is_withheld(verdict: str) -> None:
    refusal = await whole(await begun(verifier(Process(), verdict=verdict), "second_model"))
    assert refusal is not None
    assert refusal.detail == {"check": "second_model", "kinds": [verdict], "findings": []}


async def test_an_answer_that_nobody_has_approved_yet_is_kept() -> None:
    noted = Noted()
    verifying = verifier(Process(), noted)
    refusal = await whole(await begun(verifying, "human"))
    assert refusal is not None
    assert refusal.kind is errors.APPROVAL_REQUIRED
    kept = verifying.kept.get(refusal.detail["approval"], 1_000_000)
    assert kept is not None
    assert kept.body == b"{}"
    assert noted == [(FAILED, "human", ["approval_required"])]


async def test_an_answer_that_others_crowd_out_waits_for_nobody_any_more() -> None:
    verifying = verifier(Process(), kept_max=1)
    assert verifying.approvals is not None
    for _ in range(3):
        assert await whole(await begun(verifying, "human")) is not None
    (waits,) = verifying.approvals.every()
    assert verifying.kept.get(waits.id, 1_000_000) is not None
    ended = verifying.approvals.every(pending_only=False)[:-1]
    assert [(each.state, "crowded it out" in each.reason) for each in ended] == [(State.EXPIRED, True)] * 2


async def test_whoever_made_the_key_of_an_app_cannot_approve_its_answers() -> None:
    verifying = verifier(Process())
    assert verifying.approvals is not None
    assert await whole(await begun(verifying, "human")) is not None
    (waits,) = verifying.approvals.every()
    with pytest.raises(SamePerson):
        verifying.approvals.decide(waits.id, Person("maker", line=frozenset({"maker"})), approve=True)
    assert verifying.approvals.decide(waits.id, Person("other"), approve=True).state is State.APPROVED


async def test_an_approval_that_cannot_be_recorded_fails_and_nothing_is_kept() -> None:
    verifying = verifier(Process(), rows=Rows(JournalFull("full")))
    refusal = await whole(await begun(verifying, "human"))
    assert refusal is not None
    assert refusal.detail["kinds"] == ["approval_unavailable"]
    assert len(verifying.kept) == 0


async def test_parts_of_a_stream_are_checked_by_what_can_read_parts() -> None:
    process, noted = Process(), Noted()
    verification = await begun(verifier(process, noted), "secrets", "pii", "tool_calls")
    assert verification.granularity == (True, False, True, SPAN_CHARS)
    assert (await begun(verifier(process, noted), "secrets")).granularity == (True, False, False, 0)
    for _ in range(2):
        assert await verification.texts([port.Text("choice 0 content", 1, "x")]) is None
    assert process.asked == ["secrets", "pii"] * 2
    assert noted == []
    assert await verification.finish((), list, keep) is None
    assert [name for _, name, _ in noted] == ["tool_calls", "secrets", "pii"]
    process.found["pii"] = [Finding("US_SSN", "x")]
    refusal = await verification.texts([port.Text("choice 0 content", 1, "x")])
    assert refusal is not None
    assert refusal.detail["check"] == "pii"


def test_configuration_that_cannot_be_meant_is_refused() -> None:
    with pytest.raises(ValueError, match="known are CREDIT_CARD"):
        Verify.model_validate({"pii": {"entities": ["EMAIL"]}})
    with pytest.raises(ValueError, match=r"\{request\} and \{answer\} once each"):
        SecondModel(model="m", prompt="Is this fine? {answer}")
    with pytest.raises(ValueError, match="twice"):
        Verify.model_validate({"pii": {"entities": ["US_SSN", "US_SSN"]}})
    assert Verify().second_model is None
