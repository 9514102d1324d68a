"""A client that leaves: the runtime is left too, and what it produced is charged once."""

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

from domain.ids import uuid7
from tests.gateway.deployment import HELLO_BOUND
from tests.gateway.fake_runtime import PROMPT_TOKENS, FakeRuntime, chunk, closing, events, sse, usage, whole
from tests.gateway.gateway_process import HELLO, GatewayProcess, until

CAP = 20


@contextlib.contextmanager
def request(gateway: GatewayProcess, client_id: str, team: str = "free", **body: Any) -> Iterator[socket.socket]:
    """A raw request whose connection is closed at the end, whatever has come back."""
    content = json.dumps({"model": "plain", "messages": HELLO, "max_tokens": CAP, **body}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n"
    head += f"authorization: Bearer {gateway.key(team)}\r\nx-request-id: {client_id}\r\n\r\n"
    with gateway.raw() as connection:
        connection.sendall(head.encode() + content)
        yield connection


def left(gateway: GatewayProcess, fake: FakeRuntime, client_id: str, certainty: str) -> dict[str, Any]:
    row = gateway.ended(client_id)
    assert (row["status"], row["http_status"], row["error_code"]) == ("cut", 499, "client_left")
    assert row["certainty"] == certainty
    until(lambda: row["request_id"] in fake.left, "the runtime to be left")
    (charge,) = row["charges"]
    assert charge[-1] == row["input_tokens"] + row["output_tokens"]
    return row


def test_before_an_unary_answer(gateway: GatewayProcess, fake: FakeRuntime) -> None:
    client_id = uuid7()
    before = len(fake.received)
    with request(gateway, client_id, script={"steps": [10, whole(usage(1))]}):
        until(lambda: len(fake.received) > before, "the request to reach the runtime")
    row = left(gateway, fake, client_id, "at_most")
    assert (row["input_tokens"], row["output_tokens"]) == (HELLO_BOUND, CAP)


def test_before_the_first_chunk_of_a_stream(gateway: GatewayProcess, fake: FakeRuntime) -> None:
    client_id = uuid7()
    before = len(fake.received)
    with request(gateway, client_id, stream=True, script=sse(10, late_head=True)):
        until(lambda: len(fake.received) > before, "the request to reach the runtime")
    row = left(gateway, fake, client_id, "at_most")
    assert (row["input_tokens"], row["output_tokens"]) == (HELLO_BOUND, 0)


def test_in_the_middle_of_a_stream_with_reports(gateway: GatewayProcess, fake: FakeRuntime) -> None:
    """The last report and one step in flight."""
    client_id = uuid7()
    parts = [chunk("one ", usage(1)), chunk("two ", usage(2))]
    with request(gateway, client_id, stream=True, script=sse(*events(*parts), 10)) as connection:
        said = b""
        while b"two" not in said:
            said += connection.recv(65536)
    row = left(gateway, fake, client_id, "at_least")
    assert (row["input_tokens"], row["output_tokens"]) == (PROMPT_TOKENS, 2 + 1)


def test_in_the_middle_of_a_stream_without_reports(gateway: GatewayProcess, fake: FakeRuntime) -> None:
    client_id = uuid7()
    with request(gateway, client_id, stream=True, script=sse(*events(chunk("four")), 10)) as connection:
        said = b""
        while b"four" not in said:
            said += connection.recv(65536)
    row = left(gateway, fake, client_id, "at_most")
    assert (row["input_tokens"], row["output_tokens"]) == (HELLO_BOUND, len("four"))


def test_after_the_end_of_a_stream_changes_nothing(gateway: GatewayProcess) -> None:
    client_id = uuid7()
    script = sse(*events(chunk("one", usage(1)), closing(usage(1)), "[DONE]"), 5)
    with request(gateway, client_id, stream=True, script=script) as connection:
        said = b""
        while b"[DONE]" not in said:
            said += connection.recv(65536)
    row = gateway.ended(client_id)
    assert (row["status"], row["certainty"], row["output_tokens"]) == ("ok", "exact", 1)
    time.sleep(0.3)
    assert gateway.ended(client_id) == row


def test_before_its_body_is_whole(gateway: GatewayProcess) -> None:
    client_id = uuid7()
    with gateway.raw() as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 100\r\nx-request-id: {client_id}\r\n"
        connection.sendall(head.encode() + b"authorization: Bearer %s\r\n\r\n{" % gateway.key("free").encode())
        time.sleep(0.1)
    row = gateway.ended(client_id)
    assert (row["status"], row["http_status"]) == ("refused", 499)
    assert not row["charges"]


def test_while_it_waits_for_a_slot(gateway: GatewayProcess, fake: FakeRuntime) -> None:
    """What it waited for is not held for it afterwards, and the runtime never hears of it."""
    first, second = uuid7(), uuid7()
    script = {"steps": [1.0, whole(usage(1))]}
    with request(gateway, first, "patient", model="patient", script=script) as connection:
        until(lambda: gateway.open_holds() == 1, "the first hold")
        with request(gateway, second, "patient", model="patient"):
            until(lambda: gateway.metric("bursar_queue_waiting") == 1, "the second to wait")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    gateway.ended(first)
    row = gateway.ended(second)
    assert (row["status"], row["http_status"]) == ("refused", 499)
    assert row["request_id"] not in fake.received


def test_a_client_that_reads_nothing_does_not_hold_up_others(gateway: GatewayProcess) -> None:
    """What is sent to it waits in bounded buffers, and its runtime is not read meanwhile."""
    client_id = uuid7()
    before = gateway.resident_bytes()
    script = sse(*[[events(chunk("x" * 8000, usage(1)))[0], 8000]])
    with request(gateway, client_id, stream=True, script=script):
        time.sleep(0.5)
        assert gateway.chat().status_code == 200
        assert gateway.resident_bytes() - before < 32 * 1024 * 1024
    row = gateway.ended(client_id)
    assert row["status"] == "cut"


def test_many_that_leave_at_once_leave_nothing_held(gateway: GatewayProcess) -> None:
    ids = [uuid7() for _ in range(40)]
    with contextlib.ExitStack() as stack:
        for number, client_id in enumerate(ids):
            script = sse(*events(chunk("one", usage(1))), 10, late_head=number % 2 == 0)
            stack.enter_context(request(gateway, client_id, stream=True, script=script))
        until(lambda: gateway.open_holds() == len(ids), "every hold")
    rows = [gateway.ended(client_id) for client_id in ids]
    assert {row["status"] for row in rows} == {"cut"}
    assert len({row["request_id"] for row in rows}) == len(ids)
