"""The load client: what it takes for a right answer, and that it ends."""

import socket
import threading
from collections.abc import Callable

import orjson
import pytest

from bench.client import Answer, WrongAnswer, verify
from bench.errors import MeasurementError
from bench.load import Load, drive
from bench.upstream import DONE, FINAL_USAGE, PLAIN_STREAM, UNARY


def unary_answer() -> bytes:
    return UNARY[0] + b"x" + UNARY[1]


def stream_events() -> list[bytes]:
    return [before + b"x" + after for before, after in [*PLAIN_STREAM, FINAL_USAGE]] + [DONE]


def test_the_upstreams_own_answers_are_right() -> None:
    verify(Answer(200, bytearray(unary_answer())), stream=False)
    verify(Answer(200, bytearray(b"".join(stream_events()))), stream=True)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda events: events[:-1], id="no [DONE]"),
        pytest.param(lambda events: events[:10] + events[11:], id="a chunk lost"),
        pytest.param(lambda events: events[:10] + events[9:], id="a chunk doubled"),
        pytest.param(lambda events: [*events[:9], events[10], events[9], *events[11:]], id="two chunks swapped"),
        pytest.param(lambda events: events[:-2] + events[-1:], id="no usage"),
        pytest.param(lambda events: [*events[:9], b"data: {\n\n", *events[10:]], id="broken JSON"),
        pytest.param(lambda events: [*events[:9], b'data: {"error":1}\n\n', *events[10:]], id="an error event"),
        pytest.param(lambda events: [], id="nothing"),
    ],
)
def test_a_damaged_stream_is_a_wrong_answer(damage: Callable[[list[bytes]], list[bytes]]) -> None:
    with pytest.raises(WrongAnswer):
        verify(Answer(200, bytearray(b"".join(damage(stream_events())))), stream=True)


def test_a_unary_answer_with_other_text_or_usage_is_wrong() -> None:
    for path, value in ((("choices", 0, "message", "content"), "other"), (("usage", "completion_tokens"), 63)):
        body = orjson.loads(unary_answer())
        at = body
        for step in path[:-1]:
            at = at[step]
        at[path[-1]] = value
        with pytest.raises(WrongAnswer):
            verify(Answer(200, bytearray(orjson.dumps(body))), stream=False)


def test_any_status_but_200_is_a_wrong_answer() -> None:
    with pytest.raises(WrongAnswer, match="status 429"):
        verify(Answer(429, bytearray(unary_answer())), stream=False)


def test_a_wrong_answer_fails_the_measurement_and_says_why(upstream_url: str) -> None:
    with pytest.raises(MeasurementError, match=r"5 of 5 answers were wrong.*status 404"):
        drive(f"{upstream_url}/elsewhere", {}, Load(requests=5, concurrency=2))


def test_a_server_that_never_answers_fails_the_measurement_at_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(MeasurementError, match="the client failed"):
            drive(url, {}, Load(requests=3, concurrency=1, deadline_s=0.5))


def test_a_server_that_hangs_up_is_counted_request_by_request() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            for _ in range(3):
                connection, _ = listener.accept()
                connection.recv(65536)
                connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(MeasurementError, match=r"3 of 3 answers were wrong.*connection lost"):
            drive(url, {}, Load(requests=3, concurrency=1, deadline_s=5))
        thread.join(5)
        assert not thread.is_alive()


def test_a_server_that_is_not_there_fails_the_measurement() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(MeasurementError, match="the client failed"):
        drive(f"http://127.0.0.1:{port}", {}, Load(requests=3, concurrency=1, deadline_s=5))
