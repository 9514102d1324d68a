"""The OpenAPI document of the public listener; what passes through untouched is left open in it."""

from typing import Any

from gateway.requests import PRIORITY_MAX

_ERROR = {"$ref": "#/components/schemas/Error"}
_GENERATES = {
    "model": {"type": "string", "minLength": 1, "maxLength": 256},
    "stream": {"type": ["boolean", "null"]},
    "stream_options": {"type": ["object", "null"]},
    "n": {"type": ["integer", "null"], "minimum": 1, "maximum": 128},
    "max_tokens": {"type": ["integer", "null"], "minimum": 1},
    "user": {"type": ["string", "null"]},
}
_TEXTS = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1},
        {"type": "array", "items": {"type": "integer"}, "minItems": 1},
    ]
}
_MESSAGE = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"type": "string"},
        "content": {"type": ["string", "array", "null"], "items": {"type": "object"}},
    },
}
_TOOLS = {"type": ["array", "null"], "items": {"type": "object"}, "maxItems": 512}
_CHAT = {
    "type": "object",
    "required": ["model", "messages"],
    "properties": {
        **_GENERATES,
        "max_completion_tokens": {"type": ["integer", "null"], "minimum": 1},
        "messages": {"type": "array", "minItems": 1, "items": _MESSAGE},
        "tools": _TOOLS,
        "functions": _TOOLS,
    },
}
_COMPLETION = {"type": "object", "required": ["model", "prompt"], "properties": {**_GENERATES, "prompt": _TEXTS}}
_EMBEDDING = {
    "type": "object",
    "required": ["model", "input"],
    "properties": {"model": _GENERATES["model"], "input": _TEXTS, "user": _GENERATES["user"]},
}
_HEADERS = [
    {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "Names the request: sent again under the same name it is not run again.",
        "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
    },
    {
        "name": "x-bursar-priority",
        "in": "header",
        "description": "Steps back in the runtime's queue: the higher, the later.",
        "schema": {"type": "integer", "minimum": 0, "maximum": PRIORITY_MAX},
    },
]
_REFUSALS = {
    "400": "The request is malformed; `param` names the field.",
    "401": "The key is missing, unknown, revoked or expired.",
    "403": "Rego said no; the reasons are listed, with the risk level and whose it is where one is raised.",
    "404": "The model is not offered to the caller.",
    "408": "The request did not arrive in time.",
    "409": "The request has been sent before: it is in progress, or was served and its answer is not kept.",
    "413": "The body is over the limit.",
    "422": "The `Idempotency-Key` belongs to another body, or the runtime could not process the request.",
    "429": "A budget cannot hold this: it is named, with what is left and when it resets.",
    "502": "The runtime failed.",
    "503": "Overloaded, stopping, or governance is not available.",
    "504": "The runtime did not answer in time.",
}


def document() -> dict[str, Any]:
    """The document, as OpenAPI 3.1."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "Bursar", "version": "1", "description": "A governed OpenAI-compatible endpoint."},
        "security": [{"key": []}],
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": _error_schema()},
        },
        "paths": {
            "/v1/chat/completions": _post("Create a chat completion", _CHAT, streams=True),
            "/v1/completions": _post("Create a completion", _COMPLETION, streams=True),
            "/v1/embeddings": _post("Create embeddings", _EMBEDDING, streams=False),
            "/v1/models": _get("List the models offered to the caller", {}),
            "/v1/models/{model}": _get("One model offered to the caller", {"404": "Not offered."}, "model"),
            "/v1/budgets": _get("List the caller's own budgets", {}),
            "/v1/usage/{request_id}": _get("What a request of the caller's used", {"404": "Not known."}, "request_id"),
            "/v1/approvals/{approval_id}": _get(
                "An answer that was withheld until a person approved it",
                {"202": "It still waits.", "403": "It was denied, or nobody approved it in time.", "404": "Not known."},
                "approval_id",
            ),
            "/healthz": _get("Whether the process is alive", {}, is_open=True),
            "/readyz": _get("Whether it takes requests", {}, is_open=True),
            "/metrics": _get("Prometheus metrics", {}, is_open=True, content="text/plain"),
        },
    }


def _error_schema() -> dict[str, Any]:
    fields = {
        "message": {"type": "string"},
        "type": {"type": "string"},
        "param": {"type": ["string", "null"]},
        "code": {"type": ["string", "integer", "null"]},
        "bursar": {"type": "object"},
    }
    error = {"type": "object", "required": ["message", "type"], "properties": fields}
    return {"type": "object", "required": ["error"], "properties": {"error": error}}


def _refusals(which: dict[str, str]) -> dict[str, Any]:
    return {
        status: {"description": description, "content": {"application/json": {"schema": _ERROR}}}
        for status, description in which.items()
    }


def _post(summary: str, schema: dict[str, Any], *, streams: bool) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    if streams:
        content["text/event-stream"] = {}
    return {
        "post": {
            "summary": summary,
            "parameters": _HEADERS,
            "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
            "responses": {"200": {"description": "The runtime's answer.", "content": content}, **_refusals(_REFUSALS)},
        }
    }


def _get(
    summary: str,
    refusals: dict[str, str],
    parameter: str | None = None,
    *,
    is_open: bool = False,
    content: str = "application/json",
) -> dict[str, Any]:
    schema = {"type": "string"} if content == "text/plain" else {"type": "object"}
    refused = _refusals(refusals if is_open else {"401": _REFUSALS["401"], "503": _REFUSALS["503"], **refusals})
    operation: dict[str, Any] = {
        "summary": summary,
        "responses": {"200": {"description": "Done.", "content": {content: {"schema": schema}}}, **refused},
    }
    if is_open:
        operation["security"] = []
        unready = {"application/json": {"schema": {"type": "object"}}}
        operation["responses"]["503"] = {"description": "Not ready.", "content": unready}
    if parameter is not None:
        operation["parameters"] = [{"name": parameter, "in": "path", "required": True, "schema": {"type": "string"}}]
    return {"get": operation}
