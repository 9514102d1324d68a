"""Verification: the checks that a decision obliges before an answer is released, made in the order of what they cost.

The first check to fail ends it. A check that cannot be made has failed: an unknown name, a library that is missing, a
process that crashed or took too long, a person who has not said yes.
"""

import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from domain.intent import Principal
from gateway import errors
from gateway.admission import Admitted
from gateway.approvals import ApprovalError, Approvals, Person, State
from gateway.errors import Refusal
from gateway.kept import KeptAnswers
from gateway.repeats import Answer
from gateway.requests import TOOL_FIELDS, tools_in
from gateway.verification_config import Verify
from gateway.withheld import Granularity, choices_in, spelt_out, texts_of
from ledger.journal import JournalError
from policy.checks import port, verdict
from policy.checks.pieces import SPAN_CHARS, pieces
from policy.checks.port import CheckFailed, Finding, SchemaRefused, Text
from policy.checks.process import CheckProcesses
from policy.port import PolicyUnavailable
from runtime.openai.answers import Choice, ToolCall

PASSED = "verification_passed"
FAILED = "verification_failed"
# What has a runtime answer in numbers that no check can read.
_UNREADABLE = ("return_token_ids", "return_tokens_as_token_ids")
_SCHEMAS_KNOWN_MAX = 1024
_READERS = port.BY_LINE | {port.SECOND_MODEL}
_US = 1_000_000


class ToolVerdict(NamedTuple):
    """What policy says of the tools that an answer calls, and which further checks the answer must pass for them."""

    allow: bool
    codes: tuple[str, ...] = ()
    verify: tuple[str, ...] = ()


# What policy says in the phase `called` of tools, named once for each call; raises PolicyUnavailable.
ToolAsked = Callable[[Admitted, Sequence[str]], Awaitable[ToolVerdict]]
# Asks the second model about a request and its answer: "" where that may be released, else why not.
Judge = Callable[[Admitted, str, str], Awaitable[str]]
# A signal: its name, the row of the request, how many, and what belongs to it.
Note = Callable[[str, dict[str, Any], int, dict[str, Any]], None]


def _unnoted(name: str, row: dict[str, Any], count: int, detail: dict[str, Any]) -> None:
    """Nobody listens."""


@dataclass(frozen=True, slots=True)
class Verifier:
    """What verification needs in one worker; a check whose part is missing fails."""

    config: Verify
    process: CheckProcesses
    now_us: Callable[[], int]
    kept: KeptAnswers
    requester: Callable[[Principal], Person]
    tool_asked: ToolAsked | None = None
    judge: Judge | None = None
    approvals: Approvals | None = None
    note: Note = _unnoted
    _schemas: dict[bytes, None] = field(default_factory=dict)

    async def begin(self, admitted: Admitted, body: dict[str, Any]) -> "Verification | Refusal":
        """The verification of one request, before it is sent: or why its answer could never be verified."""
        names = admitted.decision.obligations.verify
        reason = self.cannot(names)
        if reason:
            return Refusal(errors.POLICY_UNAVAILABLE, reason, decision=admitted.decision)
        for name in _UNREADABLE:
            if body.get(name):
                return errors.malformed(f"{name} is not accepted: token ids cannot be verified, as policy wants.", name)
        form = _form(body) if port.JSON_SCHEMA in names else None
        if form is not None:
            refusal = await self._try_schema(form)
            if refusal is not None:
                return refusal
        made = tuple(name for name in port.ordered(names) if name != port.JSON_SCHEMA or form is not None)
        self.process.warm([name for name in made if name in port.LIBRARIES])
        offered = _offered(body, admitted.decision.obligations.blocked_tools)
        return Verification(self, admitted, made, form, offered, body)

    def cannot(self, names: Sequence[str]) -> str:
        """Why checks of these names cannot be made here, in a sentence for the operator's reader; "" where they can."""
        unknown = sorted(set(names) - set(port.NAMES))
        if unknown:
            return f"The policy obliges checks that there are not: {', '.join(unknown)}."
        lacking = port.missing(tuple(names))
        if lacking:
            said = ", ".join(f"{name} needs {library}" for name, library in sorted(lacking.items()))
            return f"The policy obliges checks whose libraries are not installed: {said}; install the extra `verify`."
        parts = {port.SECOND_MODEL: self.judge, port.HUMAN: self.approvals, port.TOOL_CALLS: self.tool_asked}
        absent = sorted(name for name, part in parts.items() if name in names and part is None)
        if absent:
            return f"The policy obliges checks that are not configured here: {', '.join(absent)}."
        return ""

    async def _try_schema(self, schema: Any) -> Refusal | None:
        """Why answers cannot be held to this schema; what has been tried is not tried again."""
        written = orjson.dumps(schema)
        bytes_max = self.config.schema_bytes_max
        if len(written) > bytes_max:
            return errors.malformed(f"The schema is larger than {bytes_max} bytes.", "response_format")
        digest = hashlib.sha256(written).digest()
        if digest in self._schemas:
            return None
        try:
            await self.process.find(port.JSON_SCHEMA, {"texts": [["", None]], "schema": schema})
        except SchemaRefused as refused:
            return errors.malformed(f"The answer cannot be verified by this schema: {refused}.", "response_format")
        except CheckFailed as failed:
            return Refusal(errors.POLICY_UNAVAILABLE, f"The schema could not be tried: {failed}.")
        if len(self._schemas) >= _SCHEMAS_KNOWN_MAX:
            self._schemas.clear()
        self._schemas[digest] = None
        return None


class Verification:
    """The checks of one request's answer, as it comes or as a whole."""

    def __init__(
        self,
        verifier: Verifier,
        admitted: Admitted,
        names: tuple[str, ...],
        form: Any,
        offered: dict[str, Any],
        body: dict[str, Any],
    ) -> None:
        self.names = names
        self.granularity = Granularity(
            reads_texts=not port.BY_LINE.isdisjoint(names),
            is_whole=not {port.JSON_SCHEMA, port.SECOND_MODEL, port.HUMAN}.isdisjoint(names),
            assembles=not port.BY_LINE.issuperset(names),
            span_chars=SPAN_CHARS if port.PII in names else 0,
        )
        self._verifier = verifier
        self._admitted = admitted
        self._form = form
        self._offered = offered
        self._body = body
        self._spent_us: dict[str, int] = {}
        self._checks = {
            port.TOOL_CALLS: self._tool_calls,
            port.SECRETS: self._secrets,
            port.JSON_SCHEMA: self._json_schema,
            port.PII: self._pii,
            port.SECOND_MODEL: self._second_model,
        }

    @property
    def header(self) -> tuple[bytes, bytes]:
        """The response header that names the checks."""
        return b"x-bursar-verified", ",".join(self.names).encode()

    @property
    def rules_tools(self) -> bool:
        """Whether policy has decided of each tool that the answer calls."""
        return port.TOOL_CALLS in self.names

    async def texts(self, texts: list[Text]) -> Refusal | None:
        """Check parts of an answer as they come: None lets them go."""
        for name in self.names:
            if name in port.BY_LINE:
                refusal = await self._made(name, (), texts)
                if refusal is not None:
                    return refusal
        return None

    async def whole(self, answer: dict[str, Any], keep: Callable[[], Answer], *, generates: bool) -> Refusal | None:
        """Check a whole answer; raises Garbage where it cannot be read. `keep` is the answer as it would be sent."""
        choices = choices_in(answer) if generates else ()
        return await self.finish(choices, lambda: texts_of(answer, generates=generates), keep)

    async def finish(
        self, choices: tuple[Choice, ...], rest: Callable[[], list[Text]], keep: Callable[[], Answer]
    ) -> Refusal | None:
        """Make every check there is on the `rest`, which has not been checked: None lets the answer go."""
        texts: list[Text] | None = None
        made: list[str] = []
        names = list(self.names)
        while names:
            name = names.pop(0)
            human = name == port.HUMAN
            if name in _READERS and texts is None:
                texts = rest()
            given = texts or []
            if name not in self.names:
                # What policy wants for a tool that was called has seen nothing of the answer yet.
                given = _texts_of(choices) + given
            refusal = await (self._human(choices, keep) if human else self._made(name, choices, given))
            if refusal is not None:
                return refusal
            made.append(name)
            if name == port.TOOL_CALLS:
                further = await self._further(choices)
                if isinstance(further, Refusal):
                    return further
                names = list(port.ordered((*names, *(each for each in further if each not in self.names))))
        for name in made:
            self._note(PASSED, name, {"duration_us": self._spent_us.get(name, 0)})
        return None

    async def _made(self, name: str, choices: tuple[Choice, ...], texts: list[Text]) -> Refusal | None:
        began_s = time.perf_counter()
        try:
            found = await self._checks[name](choices, texts)
        except CheckFailed as failed:
            return self._failed(name, [Finding(failed.kind, "")], str(failed))
        except SchemaRefused as refused:
            return self._failed(name, [Finding("schema_refused", "")], f"a schema is of no use: {refused}")
        finally:
            self._spend(name, began_s)
        return self._failed(name, found) if found else None

    async def _secrets(self, choices: tuple[Choice, ...], texts: list[Text]) -> list[Finding]:
        return await self._in_pieces(port.SECRETS, texts, {})

    async def _pii(self, choices: tuple[Choice, ...], texts: list[Text]) -> list[Finding]:
        pii = self._verifier.config.pii
        return await self._in_pieces(port.PII, texts, {"entities": list(pii.entities), "score_min": pii.score_min})

    async def _in_pieces(self, check: str, texts: list[Text], more: dict[str, Any]) -> list[Finding]:
        """What is found in the first piece that has something; long texts take turns with those of others."""
        for piece in pieces(texts):
            found = await self._verifier.process.find(check, {"texts": [list(text) for text in piece], **more})
            if found:
                return found
        return []

    async def _json_schema(self, choices: tuple[Choice, ...], texts: list[Text]) -> list[Finding]:
        # A choice that calls tools has not answered yet.
        due = [choice for choice in choices if choice.content is not None or not choice.tool_calls]
        refused = [Finding("refusal", f"choice {choice.number}") for choice in due if choice.refusal]
        if refused or not due:
            return refused
        asked = [[f"choice {choice.number} content", choice.content or ""] for choice in due]
        form = {"type": "object"} if self._form is None else self._form
        return await self._verifier.process.find(port.JSON_SCHEMA, {"texts": asked, "schema": form})

    async def _tool_calls(self, choices: tuple[Choice, ...], texts: list[Text]) -> list[Finding]:
        calls = [
            {"where": where, "kind": call.kind, "name": call.name, "arguments": call.arguments}
            for where, call in _calls(choices)
        ]
        if not calls:
            return []
        given = {"calls": calls, "offered": self._offered}
        return await self._verifier.process.find(port.TOOL_CALLS, given)

    async def _second_model(self, choices: tuple[Choice, ...], texts: list[Text]) -> list[Finding]:
        judge = self._verifier.judge
        if judge is None:
            return [Finding("not_configured", "")]
        request, answer = _request_text(self._body), "\n\n".join(text.text for text in texts)
        if len(request) + len(answer) > verdict.TEXT_CHARS_MAX:
            return [Finding("too_large", "")]
        reason = await judge(self._admitted, request, answer)
        return [Finding(reason, "")] if reason else []

    async def _further(self, choices: tuple[Choice, ...]) -> tuple[str, ...] | Refusal:
        """What policy wants of the tools that are called: further checks, or that they are not."""
        asked, calls = self._verifier.tool_asked, [call.name for _, call in _calls(choices)]
        if not calls:
            return ()
        try:
            said = ToolVerdict(allow=False) if asked is None else await asked(self._admitted, calls)
        except (PolicyUnavailable, JournalError):
            return self._failed(port.TOOL_CALLS, [Finding("policy_unavailable", "")])
        if not said.allow:
            found = [Finding(code, "") for code in said.codes] or [Finding("tool_denied", "")]
            return self._failed(port.TOOL_CALLS, found)
        reason = self._verifier.cannot(said.verify)
        if reason:
            return self._failed(port.TOOL_CALLS, [Finding("unknown_check", "")], reason)
        return said.verify

    async def _human(self, choices: tuple[Choice, ...], keep: Callable[[], Answer]) -> Refusal | None:
        """Ask a person, wait a moment, and keep the answer for the caller to fetch where nobody has said yes yet."""
        verifier, answer, began_s = self._verifier, keep(), time.perf_counter()
        config, approvals, row = verifier.config, verifier.approvals, self._admitted.hold.row
        if approvals is None or not verifier.kept.can_keep(len(answer.body)):
            return self._failed(port.HUMAN, [Finding("not_configured" if approvals is None else "too_large", "")])
        principal = self._admitted.ask.intent.principal
        try:
            approval = approvals.request(
                "answer",
                row["request_id"],
                requested_by=verifier.requester(principal),
                ttl_s=config.approval_ttl_s,
                detail={**_named(row), "size_bytes": len(answer.body), "tool_calls": len(_calls(choices))},
                digest=f"sha256:{hashlib.sha256(answer.body).hexdigest()}",
            )
        except (ApprovalError, JournalError) as error:
            return self._failed(port.HUMAN, [Finding("approval_unavailable", "")], str(error))
        # The person reads it there, also while its client still waits.
        for crowded_out in verifier.kept.put(approval, principal, answer.headers, answer.body, verifier.now_us()):
            approvals.expire(crowded_out, "other answers that wait have crowded it out")
        try:
            approval = await approvals.decided(approval.id, config.approval_wait_s)
        except BaseException:
            verifier.kept.forget(approval.id)
            approvals.expire(approval.id, "whoever asked has left")
            raise
        self._spend(port.HUMAN, began_s)
        if approval.state is State.PENDING:
            self._note(FAILED, port.HUMAN, {"kinds": ["approval_required"]})
            return errors.approval_required(approval.id, approval.expires_at, self._admitted.decision)
        verifier.kept.forget(approval.id)
        return None if approval.state is State.APPROVED else self._failed(port.HUMAN, [Finding(approval.state, "")])

    def _failed(self, name: str, found: list[Finding], reason: str = "") -> Refusal:
        kinds = sorted({finding.kind for finding in found})
        self._note(FAILED, name, {"kinds": kinds, "duration_us": self._spent_us.get(name, 0)})
        places = [finding._asdict() for finding in found if finding.where]
        return errors.unverified(name, kinds, places, reason, self._admitted.decision)

    def _spend(self, name: str, began_s: float) -> None:
        self._spent_us[name] = self._spent_us.get(name, 0) + int((time.perf_counter() - began_s) * _US)

    def _note(self, name: str, check: str, detail: dict[str, Any]) -> None:
        self._verifier.note(name, self._admitted.hold.row, 1, {"check": check, **detail})


def _calls(choices: tuple[Choice, ...]) -> list[tuple[str, ToolCall]]:
    return [
        (f"choice {choice.number} tool call {call.place}", call) for choice in choices for call in choice.tool_calls
    ]


def _texts_of(choices: tuple[Choice, ...]) -> list[Text]:
    found = []
    for choice in choices:
        found += [Text(f"choice {choice.number} content", 1, text) for text in (choice.content, choice.refusal) if text]
    for where, call in _calls(choices):
        found += [Text(where, 1, f"{call.name}\n{call.arguments}"), *spelt_out(where, call.arguments)]
    return found


def _named(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: row[name] for name in ("request_id", "org", "team", "app", "endpoint", "model", "run_id") if name in row
    }


def _form(body: dict[str, Any]) -> Any:
    """The schema that the request asked its answer to conform to; None where it asked for no JSON."""
    asked = body.get("response_format")
    if not isinstance(asked, dict):
        return None
    if asked.get("type") == "json_object":
        return {"type": "object"}
    if asked.get("type") != "json_schema":
        return None
    named = asked.get("json_schema")
    # What is missing here is refused as a schema that is none.
    return (named.get("schema") if isinstance(named, dict) else None) or []


def _offered(body: dict[str, Any], blocked: tuple[str, ...]) -> dict[str, Any]:
    """The parameter schema of each tool that reaches the runtime, by its kind and name."""
    tools = [tool for field in TOOL_FIELDS for tool in tools_in(body, field)]
    return {f"{tool.kind} {tool.name}": tool.parameters for tool in tools if tool.name not in blocked}


def _request_text(body: dict[str, Any]) -> str:
    asked = body.get("messages") if "messages" in body else body.get("prompt", body.get("input"))
    return orjson.dumps(asked).decode()
