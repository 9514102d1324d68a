"""Users of a gateway under load: three that behave and one that does not.

Reads BURSAR_LOAD (JSON: `keys` by name, `tally`: the file that the number of requests sent is written to at the end).
Every answer that is not expected is a failure, and makes Locust exit with 1.
"""

import json
import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

from locust import HttpUser, constant, events, task
from requests.exceptions import ChunkedEncodingError
from requests.exceptions import ConnectionError as SendError

from tests.load.answers import SERVED, fault, stream_fault, usage_fault

PLAN = json.loads(os.environ["BURSAR_LOAD"])
KEYS: dict[str, str] = PLAN["keys"]
CALLERS = ("search", "research", "search", "tight")
"""In turn over the users of each kind, so that every kind has callers whom no budget stops."""
CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"
TIMEOUT_S = 30
PAUSE_S = (0.005, 0.05)
OVERSIZED_BYTES = 512 * 1024
REFUSED = frozenset({400})
PREFIX = "The ledger never forgets what the budget once allowed. " * 12

sent: Counter[str] = Counter()
"""Requests sent, by `known` and `unknown` callers."""
spawned: Counter[str] = Counter()
"""Users so far, by kind."""


def _write_tally(**_: Any) -> None:
    Path(PLAN["tally"]).write_text(json.dumps(sent), encoding="utf-8")


events.quitting.add_listener(_write_tally)  # type: ignore[no-untyped-call]  # Locust leaves it untyped


class Caller(HttpUser):
    """Sends one request at a time and counts it before it leaves."""

    abstract = True
    wait_time = constant(0)

    def on_start(self) -> None:
        kind = type(self).__name__
        self.caller = CALLERS[spawned[kind] % len(CALLERS)]
        spawned[kind] += 1
        self.model = "sim-small"

    def count(self, caller: str) -> None:
        """Pause, then count a request that leaves now.

        Locust kills users that wait, and the kill reaches one that just woke at its next switch: that has to be in
        this pause, or a request would be counted and not sent.
        """
        time.sleep(random.uniform(*PAUSE_S))  # Locust has patched it to let the other users run
        sent[caller] += 1

    def headers(self, key: str | None = None) -> dict[str, str]:
        """The headers of a JSON request with the caller's key, or another."""
        key = KEYS[self.caller] if key is None else key
        return {"authorization": f"Bearer {key}", "content-type": "application/json"}

    def send(self, path: str, body: Any, name: str, allowed: frozenset[int], *, key: str | None = None) -> bytes | None:
        """Send a request and judge its answer; the body of a 200, else None."""
        self.count("known" if key is None else "unknown")
        data = body if isinstance(body, bytes) else json.dumps(body)
        with self.client.post(
            path, data=data, headers=self.headers(key), name=name, timeout=TIMEOUT_S, catch_response=True
        ) as answer:
            wrong = fault(allowed, answer.status_code, answer.headers, answer.content or b"")
            if wrong is None and answer.status_code == 200 and isinstance(body, dict):
                wrong = usage_fault(answer.content, body.get("max_tokens", 0))
            if wrong is None:
                answer.success()
                return bytes(answer.content) if answer.status_code == 200 else None
            answer.failure(wrong)
            return None

    def chat(self, **more: Any) -> dict[str, Any]:
        """The body of a chat whose long beginning is shared with other chats, so that it meets the cache."""
        question = f"{PREFIX}Question {random.randrange(50)}."
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": random.randint(4, 32),
        } | more


class Chat(Caller):
    """Asks and waits for the whole answer."""

    fixed_count = 4

    @task
    def ask(self) -> None:
        """One unary chat."""
        self.send(CHAT, self.chat(), "chat", SERVED)


class Streaming(Caller):
    """Asks and reads the answer as it comes, to its end."""

    fixed_count = 4

    @task
    def ask(self) -> None:
        """One streamed chat, read to [DONE]."""
        self.count("known")
        with self.client.post(
            CHAT,
            json=self.chat(stream=True),
            headers=self.headers(),
            name="stream",
            stream=True,
            timeout=TIMEOUT_S,
            catch_response=True,
        ) as answer:
            if answer.status_code == 200:
                wrong = stream_fault(answer.iter_lines(decode_unicode=True))
            else:
                wrong = fault(SERVED, answer.status_code, answer.headers, answer.content or b"")
            if wrong is None:
                answer.success()
            else:
                answer.failure(wrong)


class Embeddings(Caller):
    """Embeds a few texts at a time."""

    fixed_count = 2

    @task
    def embed(self) -> None:
        """One batch of texts."""
        texts = [f"text {random.randrange(1000)}" for _ in range(random.randint(1, 8))]
        body = {"model": "sim-embed", "input": texts}
        content = self.send(EMBEDDINGS, body, "embeddings", SERVED)
        if content is not None:
            assert len(json.loads(content)["data"]) == len(texts), "an embedding is missing"


class Abuser(Caller):
    """Does what nobody should, and must get a clear no each time."""

    fixed_count = 2

    @task(3)
    def bad_key(self) -> None:
        """A key that is unknown, revoked or no key at all."""
        key = random.choice(["bsk-" + "x" * 43, KEYS["revoked"], "", "nonsense"])
        self.send(CHAT, self.chat(), "abuse: key", frozenset({401}), key=key)

    @task(3)
    def malformed(self) -> None:
        """A body that is no JSON, or no request."""
        body = random.choice(
            [
                b"",
                b'{"model": "sim-small"',
                b'{"model": "sim-small", "messages": "\xff\xfe"}',
                b"[" * 50_000,
                b'["sim-small"]',
                b'{"model": 7, "messages": []}',
                b'{"model": "sim-small", "messages": "not a list"}',
            ]
        )
        self.send(CHAT, body, "abuse: malformed", REFUSED)

    @task(2)
    def unknown_model(self) -> None:
        """A model that does not exist, or is not offered to this team."""
        body = self.chat(model=random.choice(["gpt-none", "sim-small\x00", "x" * 200]))
        self.send(CHAT, body, "abuse: model", frozenset({404}))

    @task(2)
    def absurd_max_tokens(self) -> None:
        """An output cap that no model could meet."""
        body = self.chat(max_tokens=random.choice([-1, 0, 10**30, 1.5, "many"]))
        self.send(CHAT, body, "abuse: max_tokens", REFUSED)

    @task(2)
    def oversized(self) -> None:
        """A body over the limit, which the gateway may refuse while it is still being sent."""
        self.count("known")
        whole = b'{"pad": "' + b"x" * OVERSIZED_BYTES
        chunked = (whole[at : at + 65_536] for at in range(0, len(whole), 65_536))
        with self.client.post(
            CHAT,
            data=random.choice([whole, chunked]),
            headers=self.headers() | {"connection": "close"},
            name="abuse: oversized",
            timeout=TIMEOUT_S,
            catch_response=True,
        ) as answer:
            if isinstance(getattr(answer, "error", None), SendError):
                answer.success()  # the gateway hung up on the rest of the body; its refusal was lost with it
                return
            wrong = fault(frozenset({413}), answer.status_code, answer.headers, answer.content or b"")
            if wrong is None:
                answer.success()
            else:
                answer.failure(wrong)

    @task(3)
    def disconnect(self) -> None:
        """Leaves in the middle of a stream."""
        self.count("known")
        with self.client.post(
            CHAT,
            json=self.chat(stream=True, max_tokens=200),
            headers=self.headers() | {"connection": "close"},
            name="abuse: disconnect",
            stream=True,
            timeout=TIMEOUT_S,
            catch_response=True,
        ) as answer:
            if answer.status_code not in SERVED:
                answer.failure(f"status {answer.status_code}: {answer.content[:200]!r}")
                return
            try:
                for count, _ in enumerate(answer.iter_lines()):
                    if count == 6:
                        break
            except ChunkedEncodingError as error:
                answer.failure(f"the stream broke before the client left: {error}")
                return
            answer.close()
            answer.success()
