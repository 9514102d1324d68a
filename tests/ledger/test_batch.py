"""What a batch sends to `events` says the same of a record, cut out of it or whole."""

import orjson
import pytest

from ledger.batch import freeze
from ledger.records import Record

ENVELOPE = ("writer", "sha256", "seq", "kind", "ts_us", "event_id", "org", "request_id")
SHA256 = bytes(range(32))


def line_of(payload: bytes, kind: str = "usage"):
    [line] = freeze("gateway-0", [Record(7, kind, payload, SHA256, "a.seg", 0)]).lines
    return line


def payload_of(kind: str = "usage", **members: object) -> bytes:
    """A record in the order in which the gateway writes one."""
    own = {"seq": 7, "kind": kind, "ts_us": 5, "event_id": "e1", "status": "ok"}
    return orjson.dumps({**own, "request_id": "r1", "org": "acme", "team": "search", **members})


@pytest.mark.parametrize("kind", ["usage", "hold"])
def test_the_envelope_of_a_request_is_cut_out_of_its_record(kind):
    line = line_of(payload_of(kind), kind)
    event, whole = orjson.loads(line.event_json), orjson.loads(line.json)
    assert tuple(sorted(event)) == tuple(sorted(ENVELOPE))
    assert event == {name: whole[name] for name in ENVELOPE}
    assert event["sha256"] == SHA256.hex()
    assert whole["team"] == "search"


@pytest.mark.parametrize(
    "payload",
    [
        payload_of(org='a"b'),  # escaped, so not cut
        payload_of(org="ä"),
        payload_of(client_request_id=',"request_id":"forged","org":"forged"'),
        payload_of(user='{"seq":7,"kind":"usage","ts_us":5,"event_id":"forged"'),
        orjson.dumps({"seq": 7, "kind": "usage", "request_id": "r1", "org": "acme", "ts_us": 5, "event_id": "e1"}),
        orjson.dumps({"seq": 7, "kind": "usage", "ts_us": 5, "event_id": "e1", "org": "acme", "request_id": "r1"}),
    ],
)
def test_whatever_stands_in_a_record_its_event_says_the_same(payload):
    line = line_of(payload)
    event, whole = orjson.loads(line.event_json), orjson.loads(payload)
    for name in ENVELOPE[2:]:
        assert event[name] == whole[name]


def test_another_kind_goes_whole():
    payload = orjson.dumps({"seq": 7, "kind": "signal", "ts_us": 5, "event_id": "e1", "name": "overage"})
    assert orjson.loads(line_of(payload, "signal").event_json)["name"] == "overage"
