"""Forwarding: what Bursar changes in a request on its way to a runtime, and nothing else."""

import hmac
from typing import Any

import orjson

from domain.intent import Intent, Principal
from gateway.admission import Admitted
from gateway.fields import OWNED
from gateway.requests import TOOL_FIELDS, tools_in

_SALTS_MAX = 10_000


class Forwarder:
    """Builds upstream requests; `salt_key` keys the cache salts of this deployment."""

    def __init__(self, salt_key: bytes) -> None:
        self._salt_key = salt_key
        self._salts: dict[tuple[str, str, str, str, str], str] = {}

    def body(self, admitted: Admitted, asked: dict[str, Any]) -> bytes:
        """The body to send: what was asked, with the fields that Bursar sets."""
        intent, obligations = admitted.ask.intent, admitted.decision.obligations
        body = asked.copy()
        for name in asked.keys() & OWNED:
            del body[name]
        body["model"] = admitted.offer.upstream_model
        if admitted.hold.cap:
            _cap(body, admitted.hold.cap)
        if obligations.blocked_tools and intent.tools:
            _drop_tools(body, obligations.blocked_tools)
        speaks_vllm = admitted.runtime.spec.speaks_vllm
        if intent.stream:
            options = dict(body.get("stream_options") or {})
            options["include_usage"] = True
            if speaks_vllm:
                options["continuous_usage_stats"] = True
            else:
                options.pop("continuous_usage_stats", None)
            body["stream_options"] = options
        if speaks_vllm:
            body["cache_salt"] = self._salt(intent, obligations.cache_domain)
            priority = obligations.priority
            if intent.priority:  # a runtime serves lower numbers first, and takes none for 0
                priority = max(intent.priority, priority or 0)
            if priority is not None:
                body["priority"] = priority
        return orjson.dumps(body)

    def headers(self, admitted: Admitted, traceparent: bytes | None) -> bytes:
        """The headers to send: never the caller's credentials, and Bursar's own request id."""
        lines = b"Content-Type: application/json\r\nX-Request-Id: %b\r\n" % admitted.ask.intent.request_id.encode()
        authorization = admitted.runtime.spec.authorization
        if authorization:
            lines += b"Authorization: %b\r\n" % authorization.encode()
        if traceparent:
            lines += b"traceparent: %b\r\n" % traceparent
        return lines

    def _salt(self, intent: Intent, domain: str) -> str:
        principal = intent.principal
        key = (domain, principal.org, principal.team, principal.app, intent.cache_salt)
        salt = self._salts.get(key)
        if salt is None:
            if len(self._salts) >= _SALTS_MAX:
                self._salts.clear()
            salt = self._salts[key] = self._make_salt(principal, domain, intent.cache_salt)
        return salt

    def _make_salt(self, principal: Principal, domain: str, own_salt: str) -> str:
        members = {
            "app": (principal.org, principal.team, principal.app),
            "team": (principal.org, principal.team),
            "org": (principal.org,),
            "shared": (),
        }[domain]
        # JSON keeps the parts apart, so no two domains can spell the same message.
        message = orjson.dumps([domain, members, own_salt])
        return hmac.digest(self._salt_key, message, "sha256").hex()[:32]


def _cap(body: dict[str, Any], cap: int) -> None:
    if body.get("max_completion_tokens") is not None:
        body["max_completion_tokens"] = cap
        if body.get("max_tokens") is not None:
            body["max_tokens"] = cap
    else:
        body["max_tokens"] = cap
    least = body.get("min_tokens")
    if isinstance(least, int) and least > cap:
        body["min_tokens"] = cap


def _drop_tools(body: dict[str, Any], blocked: tuple[str, ...]) -> None:
    for field, choice in TOOL_FIELDS.items():
        known = tools_in(body, field)
        kept = [body[field][place] for place, tool in enumerate(known) if tool.name not in blocked]
        if kept:
            body[field] = kept
        elif known:
            del body[field]
            body.pop(choice, None)
