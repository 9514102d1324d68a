"""Errors that a client sees, in OpenAI's shape.

SimError
├── BadRequest         400, or 413 for a body that is too large
├── NotFound           404 model or path, 405 method
└── Unavailable        503 queue full or engine stopped
"""

import orjson


class SimError(Exception):
    """An answer other than success; its message is safe to show."""

    def __init__(self, status: int, kind: str, message: str, param: str | None, code: str | None) -> None:
        super().__init__(message)
        self.status = status
        self.body = orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})


class BadRequest(SimError):
    """The request cannot be served as it is, however often it is sent."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(status, "invalid_request_error", message, param, code)


class NotFound(SimError):
    """There is no such model, path or method."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None, status: int = 404) -> None:
        super().__init__(status, "invalid_request_error", message, param, code)


class Unavailable(SimError):
    """The request may succeed later."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(503, "server_error", message, None, code)
