"""The admin client of the command line: the live gateway of a home, when there is one."""

import http.client
import json
from typing import Any
from urllib.parse import quote, urlencode

from gateway.home import Home

TIMEOUT_S = 30.0
# A reload opens engines, probes them and decides again what was decided, each of which may take its time.
RELOAD_TIMEOUT_S = 180.0


class AdminFailed(RuntimeError):
    """The live gateway refused; the message is its own, and `status` that of HTTP."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Admin:
    """Calls the admin plane of the running gateway with the home's own admin key."""

    def __init__(self, host: str, port: int, secret: str) -> None:
        self._address = (host, port)
        self._secret = secret

    @classmethod
    def of(cls, home: Home) -> "Admin | None":
        """The admin client of a gateway that runs on this home, of several the first by name; None when none runs."""
        return next(iter(cls.every(home)), None)

    @classmethod
    def every(cls, home: Home) -> "list[Admin]":
        """The admin clients of all gateways that run on this home, by name."""
        runs = [home.read_run(name) for name in home.gateways() if home.alive(name)]
        return [cls(run["admin_host"], run["admin_port"], home.admin_secret()) for run in runs if run is not None]

    def get(self, path: str, **query: str) -> Any:
        """The answer of a GET; raises AdminFailed."""
        return self._ask("GET", f"{path}?{urlencode(query)}" if query else path, None)

    def post(self, path: str, body: dict[str, Any] | None = None, timeout_s: float = TIMEOUT_S) -> Any:
        """The answer of a POST; raises AdminFailed."""
        return self._ask("POST", path, body, timeout_s)

    def delete(self, path: str, name: str) -> Any:
        """The answer of a DELETE of something named; raises AdminFailed."""
        return self._ask("DELETE", f"{path}/{quote(name, safe='')}", None)

    def _ask(self, method: str, target: str, body: dict[str, Any] | None, timeout_s: float = TIMEOUT_S) -> Any:
        connection = http.client.HTTPConnection(*self._address, timeout=timeout_s)
        headers = {"Authorization": f"Bearer {self._secret}", "Content-Type": "application/json"}
        try:
            connection.request(method, target, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            answer = json.loads(response.read())
        finally:
            connection.close()
        if response.status >= 400:
            error = answer.get("error", {})
            said = error.get("message") or "\n".join(answer.get("problems", ["the gateway refused"]))
            raise AdminFailed(said, response.status)
        return answer
