"""Traffic comes out of the ledger in order of arrival and complete, however it is paged."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from domain.ids import uuid7
from ledger.client import LedgerClient, open_ledger
from ledger.focus import Ask
from ledger.journal import Journal
from ledger.traffic import NoTraffic, Request, Span, requests_of, traffic_of

US = 1_000_000
HOUR_US = 3_600 * US
BEGIN_US = 1_772_280_000 * US  # 2026-02-28T12:00:00Z, at the begin of an hour
ALL = Span(0, 1 << 51)


def row(arrived_us: int, duration_us: int, **more: Any) -> dict[str, Any]:
    request_id = uuid7(arrived_us // 1000)
    return {
        "ts_us": arrived_us + duration_us,
        "event_id": request_id,
        "request_id": request_id,
        "org": "acme",
        "endpoint": "chat",
        "model": "large",
        "served_model": "large",
        "status": "ok",
        "certainty": "exact",
        "duration_us": duration_us,
        "input_tokens": 10,
        "output_tokens": 3,
        **more,
    }


def varied() -> list[dict[str, Any]]:
    """Some hours of requests, many of which end in another hour than they came, three at once; and what is none."""
    dice = random.Random(3)
    rows = [
        row(
            BEGIN_US + dice.randrange(4 * HOUR_US),
            dice.choice((0, 900_000, HOUR_US // 2, 2 * HOUR_US)),
            input_tokens=dice.randrange(1, 99),
            prompt_bytes=400,
            prompt_blocks=[dice.getrandbits(64)],
            status=dice.choice(("ok", "cut")),
        )
        for _ in range(300)
    ]
    rows += [row(BEGIN_US + HOUR_US, 5) for _ in range(3)]
    rows += [
        row(BEGIN_US, 5, served_model="small", input_tokens=7),
        row(BEGIN_US, 5, status="failed"),
        row(BEGIN_US, 5, status="expired"),
        row(BEGIN_US, 5, status="adjusted"),
        row(BEGIN_US, 5, endpoint="embeddings"),
        row(BEGIN_US, 5, certainty="at_most"),
        row(BEGIN_US, 5, output_tokens=0),
    ]
    return rows


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LedgerClient, list[dict[str, Any]]]]:
    """A real ledger of these rows."""
    home: Path = tmp_path_factory.mktemp("home")
    rows = varied()
    journal = Journal.open(home / "journal" / "w", snapshot=dict)
    try:
        with open_ledger(home, f"chdb://{home}/ledger") as client:
            for each in rows:
                journal.append("usage", each)
            client.flush()
            yield client, rows
    finally:
        journal.close()


def asker(client: LedgerClient, sizes: list[int] | None = None) -> Ask:
    def ask(sql: str, parameters: dict[str, str]) -> list[dict[str, Any]]:
        rows = client.rows(sql, **parameters)
        if sizes is not None:
            sizes.append(len(rows))
        return rows

    return ask


def expected(rows: list[dict[str, Any]], span: Span = ALL) -> list[Request]:
    known = [
        each
        for each in rows
        if each["status"] in ("ok", "cut")
        and (each["endpoint"], each["served_model"], each["certainty"]) == ("chat", "large", "exact")
        and each["output_tokens"]
        and span.since_us <= each["ts_us"] - each["duration_us"]
        and each["ts_us"] < span.until_us
    ]
    known.sort(key=lambda each: (each["ts_us"] - each["duration_us"], each["event_id"]))
    return [
        Request(
            each["ts_us"] - each["duration_us"],
            each["input_tokens"],
            each["output_tokens"],
            each.get("prompt_bytes", 0),
            tuple(each.get("prompt_blocks", ())),
        )
        for each in known
    ]


@pytest.mark.parametrize("page_rows", [7, 50, 5_000])
def test_every_request_comes_once_and_in_order(ledger: Any, page_rows: int) -> None:
    client, rows = ledger
    sizes: list[int] = []
    ask = asker(client, sizes)
    traffic = traffic_of(ask, ALL, "large")
    assert (traffic.requests, traffic.unknown, traffic.longest_us) == (303, 2, 2 * HOUR_US)
    found = list(requests_of(ask, traffic, page_rows))
    assert found == expected(rows)
    assert len(found) == 303
    # All but the first two answers, the models and the hours, are pages.
    assert max(sizes[2:]) <= page_rows


def test_a_span_has_what_came_and_ended_within_it(ledger: Any) -> None:
    client, rows = ledger
    span = Span(BEGIN_US + HOUR_US // 3, BEGIN_US + 2 * HOUR_US + 7)
    ask = asker(client)
    found = list(requests_of(ask, traffic_of(ask, span, "large"), 11))
    assert found == expected(rows, span)
    assert 20 < len(found) < 200


def test_several_models_or_none_are_no_traffic(ledger: Any) -> None:
    ask = asker(ledger[0])
    with pytest.raises(NoTraffic, match="several models served in that time: name one with --model, of large, small"):
        traffic_of(ask, ALL)
    with pytest.raises(
        NoTraffic, match="no chat or completion of model it's was served in that time: there are large, small"
    ):
        traffic_of(ask, ALL, "it's")
    with pytest.raises(NoTraffic, match="no chat or completion was served in that time"):
        traffic_of(ask, Span(0, 5))
    (small,) = requests_of(ask, traffic_of(ask, ALL, "small"))
    assert small.input_tokens == 7
