"""The governed vLLM: a deployment in front of real servers, and the episodes in which its accounts are compared."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any
from urllib.request import urlopen

from openai import AsyncOpenAI

from runtime.vllm.sampling import VllmCounters, parse_metrics
from tests.e2e.deployment import Deployment, eventually
from tests.e2e.reconciliation import Expected, Row, expected_of_all

QUIET_S = 0.1
REQUEST_TIMEOUT_S = 60.0
METRICS_TIMEOUT_S = 10.0
ROWS_SQL = "SELECT * FROM usage WHERE startsWith(client_request_id, {prefix:String}) ORDER BY client_request_id"


@dataclass(frozen=True, slots=True)
class Counted:
    """What one vLLM counted during an episode, beside what the rows of the episode allow."""

    episode: str
    rows: tuple[Row, ...]
    allowed: Expected
    prompt: int
    generation: int

    @property
    def agrees(self) -> bool:
        """Whether the counters show what the ledger has."""
        return self.prompt in self.allowed.prompt and self.generation in self.allowed.generation


@dataclass(slots=True)
class Governed:
    """Bursar in front of a vLLM that generates and one that embeds; the urls are without `/v1`.

    `started` is what the former had counted before the first request.
    """

    deployment: Deployment
    generate_url: str
    embed_url: str
    started: VllmCounters
    secrets: dict[str, str] = field(default_factory=dict)
    counted: list[Counted] = field(default_factory=list)
    choices: dict[str, int] = field(default_factory=dict)

    def secret(self, team: str = "search") -> str:
        """The key of a team, made when it is first asked for; that takes longer than a request."""
        if team not in self.secrets:
            self.secrets[team] = self.deployment.create_key(team)
        return self.secrets[team]

    def client(self, team: str = "search") -> AsyncOpenAI:
        """The OpenAI SDK with the key of a team, pointed at Bursar; it never tries again by itself."""
        url = f"{self.deployment.url}/v1"
        return AsyncOpenAI(base_url=url, api_key=self.secret(team), max_retries=0, timeout=REQUEST_TIMEOUT_S)

    def sample(self, url: str | None = None) -> VllmCounters:
        """What vLLM, the one that generates unless another is named, shows now."""
        return sampled(url or self.generate_url)

    def quiet_sample(self, url: str | None = None) -> VllmCounters:
        """What vLLM shows once nothing runs or waits there and its totals have come to rest."""
        last: VllmCounters | None = None

        def at_rest() -> VllmCounters | None:
            nonlocal last
            before, last = last, self.sample(url)
            if before != last or last.running or last.waiting:
                time.sleep(QUIET_S)
                return None
            return last

        return eventually(at_rest, f"vLLM comes to rest, last seen as {last}")

    def rows(self, prefix: str, count: int) -> list[Row]:
        """The usage rows of the requests named so, once there are as many as were sent."""

        def settled() -> list[dict[str, Any]] | None:
            found = self.deployment.flushed_rows(ROWS_SQL, prefix=prefix)
            return found if len(found) >= count else None

        found = eventually(settled, f"{count} usage rows named {prefix}…")
        assert len(found) == count, f"{len(found)} rows of {count} requests named {prefix}"
        return list(found)

    def episode(self, name: str) -> Episode:
        """Begin an episode on the vLLM that generates, which must be at rest."""
        return Episode(self, name, self.quiet_sample())


def sampled(url: str) -> VllmCounters:
    """What the vLLM at an address shows now."""
    with urlopen(f"{url}/metrics", timeout=METRICS_TIMEOUT_S) as response:  # noqa: S310 loopback
        return parse_metrics(response.read().decode())


@dataclass(slots=True)
class Episode:
    """Requests that vLLM serves alone, each under a name of its own, from one rest of the server to the next."""

    governed: Governed
    name: str
    before: VllmCounters
    sent: int = 0

    def headers(self, choices: int = 1) -> dict[str, str]:
        """The headers that name the next request, which asks for `choices` answers."""
        self.sent += 1
        name = f"{self.name}/{self.sent:03}"
        self.governed.choices[name] = choices
        return {"x-request-id": name}

    def end(self) -> Counted:
        """Wait until all is settled and at rest, and compare what vLLM counted with what the ledger has."""
        rows = self.governed.rows(f"{self.name}/", self.sent)
        after = self.governed.quiet_sample()
        counted = Counted(
            self.name,
            tuple(rows),
            expected_of_all(rows, self.governed.choices),
            after.prompt_tokens_total - self.before.prompt_tokens_total,
            after.generation_tokens_total - self.before.generation_tokens_total,
        )
        self.governed.counted.append(counted)
        return counted
