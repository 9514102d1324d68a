"""One short HTTP request to a server that Bursar started or describes.

HttpError       it did not answer, or not with 200
  HttpTimeout   nothing came in time
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_S = 10.0
ANSWER_BYTES_MAX = 16 << 20


class HttpError(Exception):
    """A server did not answer a short request; the message names it and says how it failed."""


class HttpTimeout(HttpError):
    """A server took longer than it was given."""


def get(base_url: str, path: str, timeout_s: float = TIMEOUT_S) -> bytes:
    """The body that a path answers with 200."""
    return _exchange(base_url, "GET", path, None, timeout_s)


def post(base_url: str, path: str, body: Mapping[str, Any], timeout_s: float = TIMEOUT_S) -> Any:
    """The JSON that a path answers to a JSON body with 200."""
    answer = _exchange(base_url, "POST", path, json.dumps(body).encode(), timeout_s)
    try:
        return json.loads(answer)
    except ValueError as error:
        raise HttpError(f"{base_url}{path} did not answer with JSON: {error}") from error


def _exchange(base_url: str, method: str, path: str, body: bytes | None, timeout_s: float) -> bytes:
    url = urlsplit(base_url)
    kind = HTTPSConnection if url.scheme == "https" else HTTPConnection
    connection = kind(url.hostname or "", url.port, timeout=timeout_s)
    try:
        connection.request(method, url.path.rstrip("/") + path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        # One byte over the bound tells a longer answer from one that fits.
        content = answer.read(ANSWER_BYTES_MAX + 1)
    except (OSError, HTTPException) as error:
        kind_of = HttpTimeout if isinstance(error, TimeoutError) else HttpError
        raise kind_of(f"{base_url}{path} did not answer: {error or type(error).__name__}") from error
    finally:
        connection.close()
    if answer.status != 200:
        raise HttpError(f"{base_url}{path} answered {answer.status}: {content[:200].decode(errors='replace')}")
    if len(content) > ANSWER_BYTES_MAX:
        raise HttpError(f"{base_url}{path} answered with more than {ANSWER_BYTES_MAX} bytes")
    return content
