"""Questions: what a request of ClickHouse's HTTP interface asks, wherever in it that is said.

A statement stands in `query`, in the body, or in both, one after the other; parameters and settings stand in the query
string or, with the statement, in a form of several parts.
"""

import base64
import binascii
import re
import uuid
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import parse_qsl

from ledger import served
from ledger.readers import Question

FIELDS_MAX = 200
_PARAMETER = "param_"
_QUERY_ID = re.compile(r"[ -~]{1,128}")
# Forms are read by hand, for Python's reader of mail takes minutes for some that are shorter than a statement may be.
_FORM_KIND = re.compile(rb'multipart/form-data; {0,4}boundary="?([0-9A-Za-z\'()+_,./:=?-]{1,70})"?', re.IGNORECASE)
_PART_NAME = re.compile(rb'Content-Disposition: {0,4}form-data; {0,4}name="([^"\\\r\n]{1,128})"', re.IGNORECASE)
_PART_TYPE = re.compile(rb"Content-Type: {0,4}text/plain(?:; {0,4}charset=utf-8)?", re.IGNORECASE)

Headers = Iterable[tuple[bytes, bytes]]


class BadRequest(Exception):
    """The request cannot be understood; with ClickHouse's number and name for it. The message is safe to show."""

    def __init__(self, message: str, code: int, name: str) -> None:
        super().__init__(f"Code: {code}. DB::Exception: {message}. ({name})")
        self.code = code


class Spoken(NamedTuple):
    """What a request says beside its question: its fields, and its headers by their names in lower case."""

    fields: dict[str, str]
    headers: dict[bytes, bytes]

    @classmethod
    def of(cls, query_string: bytes, headers: Headers) -> "Spoken":
        """Reads the query string; BadRequest."""
        try:
            pairs = parse_qsl(query_string.decode(), keep_blank_values=True, max_num_fields=FIELDS_MAX, errors="strict")
        except ValueError as error:
            raise BadRequest(f"the query string cannot be read: {error}", 36, "BAD_ARGUMENTS") from error
        return cls(dict(pairs), dict(headers))

    def secrets(self) -> list[bytes]:
        """Every secret that is offered, in the ways that ClickHouse's clients know."""
        offered = [self.headers.get(b"x-clickhouse-key", b""), self.fields.get("password", "").encode()]
        scheme, _, rest = self.headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"bearer":
            offered.append(rest.strip())
        elif scheme.lower() == b"basic":
            try:
                offered.append(base64.b64decode(rest, validate=True).partition(b":")[2])
            except binascii.Error:
                # What is not base64 holds no secret; without another one the answer is the same 401.
                return [secret for secret in offered if secret]
        return [secret for secret in offered if secret]

    def encoding(self) -> str:
        """How the result is to be compressed: gzip, deflate or not at all; only with `enable_http_compression`."""
        if self.fields.get("enable_http_compression") not in ("1", "true"):
            return ""
        accepted = self.headers.get(b"accept-encoding", b"").decode("latin-1")
        offers = [part.replace(" ", "").lower().partition(";q=") for part in accepted.split(",")]
        names = {name for name, _, weight in offers if not weight or weight.strip("0.")}
        return next((name for name in ("gzip", "deflate") if name in names), "")

    def query_id(self) -> str:
        """The identifier that the client gave, if it can stand in a header, or a new one."""
        given = self.fields.get("query_id", "")
        return given if _QUERY_ID.fullmatch(given) else str(uuid.uuid4())

    def question(self, body: bytes) -> Question | None:
        """The question with this body; None when there is no statement. BadRequest."""
        fields = dict(self.fields)
        kind = self.headers.get(b"content-type", b"")
        if self.headers.get(b"content-encoding", b"identity") != b"identity":
            raise BadRequest("send the statement without Content-Encoding", 36, "BAD_ARGUMENTS")
        if kind.lower().startswith(b"multipart/form-data"):
            fields |= _form(kind, body)
            body = b""
        sql = "\n".join(part for part in (fields.get("query", ""), _text(body)) if part)
        if not sql.strip():
            return None
        database = fields.get("database") or self.headers.get(b"x-clickhouse-database", b"").decode("latin-1")
        fallback = self.headers.get(b"x-clickhouse-format", b"").decode("latin-1") or "TabSeparated"
        return Question(
            sql,
            fields.get("default_format") or fallback,
            {name.removeprefix(_PARAMETER): value for name, value in fields.items() if name.startswith(_PARAMETER)},
            {
                name: value
                for name, value in fields.items()
                if name not in served.SPOKEN and not name.startswith(_PARAMETER)
            },
            database,
        )


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise BadRequest("the statement is not UTF-8", 62, "SYNTAX_ERROR") from error


def _form(kind: bytes, body: bytes) -> dict[str, str]:
    """The fields of a form of several parts; BadRequest for a file, which would be a table of the client's own."""
    boundary = _FORM_KIND.fullmatch(kind.strip())
    if boundary is None:
        raise _bad_form("its content type is not multipart/form-data with a boundary")
    # So that the first part too begins after a line break.
    before, *parts = (b"\r\n" + body).split(b"\r\n--" + boundary[1], FIELDS_MAX + 1)
    if before or not parts or parts[-1].strip() != b"--":
        raise _bad_form(f"it has more than {FIELDS_MAX} fields, or no end")
    return dict(_field(part) for part in parts[:-1])


def _field(part: bytes) -> tuple[str, str]:
    """Name and value of one part of a form; BadRequest for one with anything but a name and the type of plain text."""
    head, separator, value = part.partition(b"\r\n\r\n")
    names, rest = [], []
    for line in head.removeprefix(b"\r\n").split(b"\r\n", 2):
        match = _PART_NAME.fullmatch(line)
        if match is None:
            rest.append(line)
        else:
            names.append(match[1])
    if b"filename" in head.lower():
        raise BadRequest("external tables are not served", 344, "SUPPORT_IS_DISABLED")
    if not separator or len(names) != 1 or not all(map(_PART_TYPE.fullmatch, rest)):
        raise _bad_form("a part is not a field of plain text with a name")
    return _text(names[0]), _text(value)


def _bad_form(why: str) -> BadRequest:
    return BadRequest(f"the form cannot be read: {why}", 36, "BAD_ARGUMENTS")
