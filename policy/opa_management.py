"""What is managed on an OPA server, through `opa-python-client`: its policies, its data, its bundles, and explanations.

Policies that are pushed one by one have no revision, so `OpaEngine` does not decide by them: they are for trying out on
an OPA of one's own. What serves is a bundle (`policy/opa_build.py`).
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar
from urllib.parse import urlsplit

from opa_client import OpaClient
from opa_client import errors as opa_errors

from policy.bundle import Module, load
from policy.port import ADMISSION, BundleError, EngineAway, EvaluationError, PolicyError, Undefined
from policy.source import Statement, statements

TIMEOUT_S = 10.0
TRACE_LINES_MAX = 20_000

_QUERY = {"explain": "full", "pretty": "true", "provenance": "true", "strict-builtin-errors": "true"}
_REFUSALS = (
    opa_errors.RegoParseError,
    opa_errors.PolicyNotFoundError,
    opa_errors.DeletePolicyError,
)
_Result = TypeVar("_Result")


class Refused(PolicyError):
    """OPA understood what it was asked, and does not do it."""


class Pushed(NamedTuple):
    """What a push has put on an OPA, by name, and the policies that it took away."""

    revision: str
    policies: tuple[str, ...]
    data: tuple[str, ...]
    removed: tuple[str, ...]


class Explanation(NamedTuple):
    """What an entry point is worth for an input, by which bundles, and how OPA came to it, line by line."""

    value: Any
    revisions: dict[str, str]
    trace: tuple[str, ...]


class BundleStatus(NamedTuple):
    """One bundle of an OPA; `problem` is why a newer one does not serve, empty when nothing is wrong."""

    name: str
    revision: str
    activated_at: str
    problem: str


class OpaManager:
    """One OPA server as an operator manages it; not for several threads at once.

    Every method raises EngineAway where it cannot be reached and Refused where it does not do what it is asked.
    """

    def __init__(self, url: str, token: str = "", timeout_s: float = TIMEOUT_S) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
            raise Refused(f"{url} is not the address of an OPA: write http://HOST:8181")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        self.url = url
        self._client = OpaClient(
            host=host, port=port, ssl=parts.scheme == "https", token=token or None, timeout=timeout_s, retries=0
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close_connection()

    def push(self, root: Path | str) -> Pushed:
        """Put the rules and tables of a bundle folder on it; raises BundleError with the place of a mistake.

        Policies under the bundle's own names that it has no longer are taken away. It is no single step: in between,
        OPA decides by some of the new and some of the old.
        """
        bundle = load(root)
        for name, table in bundle.data.items():
            self.put_data(name, table)
        ours = {module.file: module.text for module in bundle.modules}
        tops = {file.split("/")[0] for file in ours}
        before = {name: self.policy(name) for name in self.policies() if name.split("/")[0] in tops}
        removed = tuple(name for name in before if name not in ours)
        # OPA compiles after each step, also where one module calls functions of another that comes later or is gone.
        declared = {f"{name}.new": _declared(Module(name, text)) for name, text in ours.items()}
        declared |= {f"{name}.old": _declared(Module(name, text)) for name, text in before.items()}
        declared = {name: text for name, text in declared.items() if text}
        try:
            for name, text in (declared | ours).items():
                self.put_policy(name, text)
            for name in removed:
                self.delete_policy(name)
        finally:
            with suppress(PolicyError):
                for name in declared.keys() & set(self.policies()):
                    self.delete_policy(name)
        return Pushed(bundle.revision, tuple(sorted(ours)), tuple(sorted(bundle.data)), removed)

    def policies(self) -> list[str]:
        """The names of its policies."""
        return sorted(self._asked(self._client.get_policies_list))

    def policy(self, name: str) -> str:
        """The text of one of its policies."""
        return str(self._asked(lambda: self._client.get_policy(name))["result"]["raw"])

    def put_policy(self, name: str, text: str) -> None:
        """Put one module on it, as it is written; raises BundleError where it does not compile."""
        try:
            self._asked(lambda: self._client.update_policy_from_string(text, name, rego_compat=False))
        except _Mistake as mistake:
            raise BundleError(mistake.file or name, mistake.line, mistake.message) from mistake

    def delete_policy(self, name: str) -> None:
        """Take one module off it."""
        self._asked(lambda: self._client.delete_policy(name))

    def put_data(self, path: str, table: Mapping[str, Any]) -> None:
        """Put a table in place of what stands at a path, as `bursar/admission`."""
        self._asked(lambda: self._client.update_or_create_data(dict(table), path))

    def explain(self, input_document: Mapping[str, Any], entry: str = ADMISSION) -> Explanation:
        """What an entry point is worth for an input and how OPA came to it; raises EvaluationError or Undefined."""
        try:
            said = self._asked(lambda: self._client.query_rule(dict(input_document), entry, query_params=_QUERY))
        except Refused as refused:
            raise EvaluationError(str(refused)) from refused
        if "result" not in said:
            raise Undefined("the entry point is undefined for this input")
        bundles = said.get("provenance", {}).get("bundles") or {}
        revisions = {name: str(of.get("revision", "")) for name, of in sorted(bundles.items())}
        return Explanation(said["result"], revisions, tuple(map(str, said.get("explanation", ())[:TRACE_LINES_MAX])))

    def bundles(self) -> list[BundleStatus]:
        """Its bundles, the active revision of each, and why a newer one does not serve; it must keep a status."""
        said = self._asked(self._client.get_status)["result"].get("bundles") or {}
        return [
            BundleStatus(name, str(of.get("active_revision", "")), _since(of), _problem(of))
            for name, of in sorted(said.items())
        ]

    def is_healthy(self) -> bool:
        """Whether it says that it is well and that every bundle of its configuration is active."""
        return bool(self._client.check_health(query={"bundles": True}))

    def _asked(self, ask: Callable[[], _Result]) -> _Result:
        try:
            return ask()
        except opa_errors.RegoParseError as error:
            raise _mistake(error) from error
        except _REFUSALS as error:
            raise Refused(f"OPA answered {error.expression}: {error.message}") from error
        except ValueError as error:
            raise Refused(f"what answers at {self.url} is no OPA: it does not speak JSON") from error
        except OSError as error:
            # What the client's `requests` raises; with the response where there was one.
            response = getattr(error, "response", None)
            if response is None:
                raise EngineAway(f"OPA at {self.url} cannot be asked: {type(error).__name__}") from error
            raise Refused(f"OPA answered {response.status_code}: {_body(response)}") from error


class _Mistake(Refused):
    """A refusal that may name a place."""

    def __init__(self, message: str, file: str = "", line: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.file = file
        self.line = line


def _declared(module: Module) -> str:
    """A module that says which functions there are in another and never answers; nothing where it has none."""
    found = tuple(statements(module.file, module.text))
    functions = {head[0].text: _arity(head) for head in found if len(head) > 1 and head[1].text == "("}
    package = next((head for head in found if head[0].text == "package"), ())
    if not functions or not package:
        return ""
    lines = [f"{name}({', '.join(['_'] * arity)}) := input if false" for name, arity in functions.items()]
    return "\n\n".join([f"package {''.join(token.text for token in package[1:])}", "import rego.v1", *lines, ""])


def _arity(head: Statement) -> int:
    """How many parameters the function has whose rule begins so."""
    depth, commas = 0, 0
    for token in head[1:]:
        depth += (token.text in ("(", "[", "{")) - (token.text in (")", "]", "}"))
        commas += depth == 1 and token.text == ","
        if depth == 0:
            break
    return commas + 1


def _mistake(error: Any) -> _Mistake:
    first = next((each for each in error.errors if isinstance(each, dict)), None)
    if first is None:
        return _Mistake(f"OPA answered {error.expression}: {error.message}")
    place = first.get("location") or {}
    return _Mistake(str(first.get("message", error.message)), str(place.get("file", "")), int(place.get("row", 0)))


def _body(response: Any) -> str:
    try:
        said = response.json()
        first = (said.get("errors") or [{}])[0]
        parts = (said.get("code"), said.get("message"), first.get("message"))
        return " ".join(": ".join(filter(None, parts)).split())[:500]
    except (ValueError, AttributeError, LookupError, TypeError):
        return str(response.text)[:200]


def _since(status: Mapping[str, Any]) -> str:
    """When it was activated, empty when it never was: OPA then says the year 1."""
    at = str(status.get("last_successful_activation", ""))
    return "" if at.startswith("0001-") else at


def _problem(status: Mapping[str, Any]) -> str:
    parts = [str(status.get(name, "")) for name in ("code", "message") if status.get(name)]
    for each in status.get("errors") or ():
        place = each.get("location") if isinstance(each, dict) else None
        at = f"{place.get('file')}:{place.get('row')}: " if isinstance(place, dict) else ""
        parts.append(f"{at}{each.get('message', '') if isinstance(each, dict) else each}")
    return " ".join(": ".join(parts).split())
