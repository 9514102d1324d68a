"""Too many at once, and the end: what is over a bound is shed, what is in flight ends and settles."""

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.gateway import gateway_process
from tests.gateway.deployment import deploy
from tests.gateway.fake_runtime import FakeRuntime, chunk, closing, events, sse, usage, whole
from tests.gateway.gateway_process import GatewayProcess, error_of, until


@pytest.fixture
def small(fake: FakeRuntime, tmp_path: Path) -> Iterator[GatewayProcess]:
    """A gateway that takes two requests at once, and six connections."""
    limits = {"in_flight_max": 2, "connections_max": 6, "drain_timeout_s": 2}
    with gateway_process.running(tmp_path / "home", deploy(tmp_path, fake.url, limits=limits)) as small:
        yield small


def test_requests_over_the_bound_are_shed_and_recorded(small: GatewayProcess) -> None:
    with ThreadPoolExecutor(2) as pool:
        slow = [pool.submit(small.chat, script={"steps": [1, whole(usage(1))]}) for _ in range(2)]
        until(lambda: small.open_holds() == 2, "two holds")
        answer = small.chat()
        assert "in flight" in error_of(answer, 503, "overloaded")["message"]
        assert int(answer.headers["retry-after"]) >= 1
        assert small.client.get("/healthz").status_code == 200
        assert [each.result().status_code for each in slow] == [200, 200]
    row = small.ended(answer)
    assert (row["status"], row["http_status"], row["charges"]) == ("refused", 503, ())
    assert small.chat().status_code == 200


def test_connections_over_the_bound_are_closed_with_a_reason(small: GatewayProcess) -> None:
    small.key("free")
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(small.raw()) for _ in range(8)]
        said = []
        for connection in opened:
            connection.settimeout(0.1)
            with contextlib.suppress(TimeoutError):
                said.append(connection.recv(65536))
    assert said
    assert all(each.startswith(b"HTTP/1.1 503") and b"overloaded" in each for each in said)
    until(lambda: small.chat().status_code == 200, "the connections to be free again")


def test_on_sigterm_streams_end_and_settle_and_nothing_new_is_taken(small: GatewayProcess) -> None:
    parts = [chunk("one", usage(1)), chunk("two", usage(2)), closing(usage(2)), "[DONE]"]
    first, second, *end = events(*parts)
    small.key("free")
    idle = httpx.Client(base_url=small.url)
    assert idle.get("/healthz").status_code == 200
    with ThreadPoolExecutor(1) as pool:
        streamed = pool.submit(small.chat, stream=True, script=sse(first, 1.0, second, *end))
        until(lambda: small.open_holds() == 1, "the hold")
        small.process.terminate()
        time.sleep(0.4)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{small.url}/healthz", timeout=2)
        # A connection from before either carries the refusal or has been closed.
        with contextlib.suppress(httpx.TransportError):
            error_of(idle.post("/v1/chat/completions", json={}, headers=small.headers("free")), 503, "overloaded")
        answer = streamed.result()
    assert answer.text.endswith("data: [DONE]\n\n")
    assert small.process.wait(10) == 0
    (row,) = (row for row in small.records("usage") if row["request_id"] == answer.headers["x-request-id"])
    assert (row["status"], row["certainty"], row["output_tokens"]) == ("ok", "exact", 2)
    idle.close()


def test_what_does_not_end_within_the_drain_is_cut_charged_and_told(small: GatewayProcess) -> None:
    parts = events(chunk("one", usage(1)))
    with ThreadPoolExecutor(1) as pool:
        streamed = pool.submit(small.chat, stream=True, script=sse(*parts, 30))
        until(lambda: small.open_holds() == 1, "the hold")
        time.sleep(0.2)
        began_s = time.monotonic()
        small.process.terminate()
        answer = streamed.result()
    assert small.process.wait(10) == 0
    assert 1.5 < time.monotonic() - began_s < 6
    assert '"overloaded"' in answer.text.rsplit("data: ", 1)[1]
    (row,) = (row for row in small.records("usage") if row["request_id"] == answer.headers["x-request-id"])
    assert (row["status"], row["certainty"], row["output_tokens"]) == ("cut", "at_least", 2)


def test_after_a_kill_holds_expire_in_full_and_counters_are_what_the_rows_say(
    fake: FakeRuntime, tmp_path: Path
) -> None:
    config = deploy(tmp_path, fake.url, book={"hold_ttl_s": 1})
    first = GatewayProcess(tmp_path / "home", config)
    first.ended(first.chat())
    secret = first.key("free")
    with ThreadPoolExecutor(1) as pool:
        stuck = pool.submit(first.chat, max_tokens=20, script={"steps": [20, "{}"]})
        until(lambda: first.open_holds() == 1, "the hold")
        first.process.kill()
        first.process.wait()
        with pytest.raises(httpx.TransportError):
            stuck.result()
    first.stop()
    with gateway_process.running(tmp_path / "home", config) as second:
        until(lambda: second.open_holds() == 0, "the hold to expire", 4)
        rows = second.records("usage")
        assert [row["status"] for row in rows] == ["ok", "expired"]
        assert rows[1]["certainty"] == "at_most"
        charged = sum(charge[-1] for row in rows for charge in row["charges"] if charge[0] == "org-day")
        (counter,) = second.admin.get("/admin/budgets", params={"budget": "org-day"}).json()["counters"]
        assert (counter["spent"], counter["held"]) == (charged, 0)
        headers = {"authorization": f"Bearer {secret}"}
        assert second.client.get("/v1/models", headers=headers).status_code == 200
