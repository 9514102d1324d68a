"""What a batch sends to `events` says the same of a record, cut out of it or whole."""

import orjson
import pytest

from ledger.batch import Batch
from ledger.records import Record
from ledger.tables import IN_ORDER

ENVELOPE = ("writer", "sha256", "seq", "kind", "ts_us", "event_id", "org", "request_id")
SHA256 = bytes(range(32))
NOTHING = {table.name: 0 for table in IN_ORDER}


def sent(payload: bytes, kind: str = "usage") -> dict[str, dict[str, object]]:
    """What each table is sent of one record."""
    batch = Batch("gateway-0", (Record(7, kind, payload, SHA256, "a.seg", 0),))
    return {table.name: orjson.loads(rows) for table, rows, _ in batch.inserts(NOTHING, "o1")}


def payload_of(kind: str = "usage", **members: object) -> bytes:
    """A record in the order in which the gateway writes one."""
    own = {"seq": 7, "kind": kind, "ts_us": 5, "event_id": "e1", "status": "ok"}
    return orjson.dumps({**own, "request_id": "r1", "org": "acme", "team": "search", **members})


@pytest.mark.parametrize("kind", ["usage", "hold"])
def test_the_envelope_of_a_request_is_cut_out_of_its_record(kind):
    tables = sent(payload_of(kind), kind)
    event, whole = tables["events"], tables[kind]
    assert tuple(sorted(event)) == tuple(sorted(ENVELOPE))
    assert event == {"sha256": SHA256.hex(), **{name: whole[name] for name in ENVELOPE if name != "sha256"}}
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
    event, whole = sent(payload)["events"], orjson.loads(payload)
    for name in ENVELOPE[2:]:
        assert event[name] == whole[name]


def test_another_kind_goes_whole():
    payload = orjson.dumps({"seq": 7, "kind": "signal", "ts_us": 5, "event_id": "e1", "name": "overage"})
    assert sent(payload, "signal")["events"]["name"] == "overage"


def test_a_retry_sends_the_same_bytes_under_the_same_token_whatever_else_was_shipped():
    records = [
        Record(seq, "usage", payload_of().replace(b'"seq":7', b'"seq":%d' % seq), SHA256, "a", 0) for seq in (5, 6)
    ]
    batch = Batch("gateway-0", (*records, Record(7, "signal", b'{"seq":7,"kind":"signal"}', SHA256, "a", 0)))
    first = list(batch.inserts(NOTHING, "o1"))
    assert [token for _, _, token in first] == [
        "gateway-0:5-6:usage:o1",
        "gateway-0:7-7:signal:o1",
        "gateway-0:5-7:events:o1",
    ]
    assert list(batch.inserts({**NOTHING, "usage": 6}, "o1")) == first[1:]
    assert next(batch.inserts({**NOTHING, "usage": 5}, "o2"))[2] == "gateway-0:6-6:usage:o2"
    assert list(batch.inserts(dict.fromkeys(NOTHING, 7), "o1")) == []
