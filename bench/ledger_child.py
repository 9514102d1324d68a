"""`python -m bench.ledger_child TASK FOLDER ROWS`: one measurement of the ledger in a process of its own.

`ingest` and `insert` print the CPU that each row cost, in µs; `fill` makes rows for the queries.
"""

import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, Final

from gateway import compiled

# Before anything that is compiled is imported.
compiled.start()

import orjson  # noqa: E402

from domain.ids import uuid7  # noqa: E402
from ledger.checkpoints import Leaves  # noqa: E402
from ledger.journal import Journal  # noqa: E402
from ledger.notary import Notary  # noqa: E402
from ledger.shipper import BATCH_ROWS_MAX, Shipper  # noqa: E402
from ledger.signing import signer_of  # noqa: E402
from ledger.store import Store  # noqa: E402
from ledger.tables import BY_KIND  # noqa: E402

FILL_BLOCK_ROWS: Final = 1_000_000
FILL_DAYS: Final = 30
IDS: Final = 20
MERGES_WAIT_S: Final = 60.0
USAGE: Final = BY_KIND["usage"]
WRITER: Final = "bench"
_GC_THRESHOLDS: Final = (100_000, 20, 50)
Row = tuple[dict[str, Any], bytes]


def main(task: str, folder: Path, rows: int) -> None:
    """Runs a task and prints its result as JSON."""
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
    tasks: dict[str, Callable[[Path, int], dict[str, Any]]] = {"ingest": ingest, "insert": insert, "fill": fill}
    print(json.dumps(tasks[task](folder, rows)))


def ingest(folder: Path, rows: int) -> dict[str, Any]:
    """The way of a settlement: journal, chain and fsync, `usage`, its rollups, `events`, checkpoints, merges."""
    store = Store(f"chdb://{folder / 'ledger'}")
    notary = Notary(folder / "checkpoints", signer_of(folder), Leaves(store.select))
    shipper = Shipper(folder / "journal", store, sealed=notary.sealed)
    journal = Journal.open(folder / "journal" / WRITER, snapshot=dict)
    made, others_ns = _rows(rows), 0
    began_ns = time.process_time_ns()
    while True:
        making_ns = time.thread_time_ns()
        batch = list(islice(made, BATCH_ROWS_MAX))
        others_ns += time.thread_time_ns() - making_ns
        if not batch:
            break
        for body, members in batch:
            journal.append("usage", body, members)
        del batch
        journal.sync()
        shipper.round()
    _await_merges(store)
    cpu_ns = time.process_time_ns() - began_ns - others_ns
    tail_seq, size_bytes = journal.tail_seq, journal.bytes_total
    journal.close()
    (count,) = store.select("SELECT count(), sum(list_cost_nusd) FROM usage")
    sums = {
        store.select(f"SELECT sum(rows), sum(list_cost_nusd) FROM usage_by_{level}")[0]  # noqa: S608
        for level in ("minute", "hour", "day")
    }
    store.close()
    assert sums == {count}, (sums, count)
    assert count[0] == rows
    assert notary.status()["signed"] == {WRITER: tail_seq}
    return {"us_per_row": cpu_ns / rows / 1_000, "bytes_per_row": size_bytes / rows}


def insert(folder: Path, rows: int) -> dict[str, Any]:
    """The same rows inserted into the same table without journal, envelope and rollups."""
    store = Store(f"chdb://{folder / 'ledger'}")
    store.execute("DROP VIEW usage_to_minute SYNC")
    made, others_ns = _rows(rows), 0
    began_ns = time.process_time_ns()
    for number in range(-(-rows // BATCH_ROWS_MAX)):
        making_ns = time.thread_time_ns()
        lines = [b"{%b,%b}" % (orjson.dumps(body)[1:-1], members) for body, members in islice(made, BATCH_ROWS_MAX)]
        block = b"\n".join(lines)
        del lines
        others_ns += time.thread_time_ns() - making_ns
        store.insert(USAGE, block, str(number))
    _await_merges(store)
    cpu_ns = time.process_time_ns() - began_ns - others_ns
    (count,) = store.select("SELECT count() FROM usage")
    store.close()
    assert count == (rows,)
    return {"us_per_row": cpu_ns / rows / 1_000}


def fill(folder: Path, rows: int) -> dict[str, Any]:
    """Requests of a month, made by the engine, with their rollups; the ids of some of them."""
    store = Store(f"chdb://{folder / 'ledger'}")
    now_us = time.time_ns() // 1_000
    began_us = now_us - FILL_DAYS * 86_400_000_000
    for first in range(0, rows, FILL_BLOCK_ROWS):
        count = min(FILL_BLOCK_ROWS, rows - first)
        store.execute(_FILL, first=first, count=count, began=began_us, step=(now_us - began_us) // rows)
    assert store.select("SELECT count() FROM usage") == [(rows,)]
    some = store.select(f"SELECT request_id, org FROM usage WHERE seq % {rows // IDS} = 77 ORDER BY seq")  # noqa: S608
    store.close()
    return {"requests": some}


def _await_merges(store: Store) -> None:
    """Waits until the engine has merged what it wants to, for that belongs to the price of a row."""
    deadline_s = time.monotonic() + MERGES_WAIT_S
    while store.select("SELECT count() FROM system.merges") != [(0,)] and time.monotonic() < deadline_s:
        time.sleep(0.1)


def _rows(count: int) -> Iterator[Row]:
    """Settlements as the gateway appends them: what they add, and the members of the row that the hold began."""
    random = Random(3)
    for number in range(count):
        now_us, request_id = time.time_ns() // 1_000, uuid7()
        team, app = f"team-{number % 20}", f"app-{number % 60}"
        model, output = f"model-{random.randrange(8)}", random.randrange(1, 256)
        cost_nusd = random.randrange(1_000, 300_000)
        row = {
            "request_id": request_id,
            "org": "acme",
            "team": team,
            "app": app,
            "key_id": f"key-{number % 200:012x}",
            "endpoint": "chat",
            "model": model,
            "risk_level": "normal",
            "stream": True,
            "hold_id": uuid7(),
            "decision_id": uuid7(),
            "policy_revision": "3f1c7a9be2d45068",
            "price_version": "2025-01-01",
            "served_model": model,
            "runtime": f"vllm-{number % 3}",
            "held_output_tokens": 256,
            "held_tokens": 1_000 + output,
            "held_list_cost_nusd": 303_600,
            "held_gpu_us": 128_456,
            "held_gpu_cost_nusd": 89_205,
            "cache_domain": "app",
        }
        settled = {
            "ts_us": now_us,
            "event_id": request_id,
            "status": "ok",
            "http_status": 200,
            "input_tokens": random.randrange(100, 2_000),
            "output_tokens": output,
            "gpu_us": random.randrange(1_000, 100_000),
            "duration_us": random.randrange(10_000, 900_000),
            "list_cost_nusd": cost_nusd,
            "gpu_cost_nusd": random.randrange(100, 30_000),
            "certainty": "exact",
            "charges": (
                ("org-day-cost", "acme", now_us // 1_000_000, "list_cost_nusd", cost_nusd),
                ("team-month-tokens", f"acme/{team}", now_us // 1_000_000, "tokens", output),
                ("app-hour-cost", f"{team}/{app}", now_us // 1_000_000, "list_cost_nusd", cost_nusd),
            ),
            "ttft_us": random.randrange(1_000, 90_000),
            "cached_input_tokens": 64,
            "saved_cost_nusd": 8_640,
        }
        yield settled, orjson.dumps(row)[1:-1]


# The id of a request holds its time in milliseconds, as UUIDv7 does.
_FILL = """
INSERT INTO usage (ts_us, event_id, request_id, hold_id, decision_id, policy_revision, price_version, org, team, app,
    key_id, endpoint, model, served_model, runtime, status, http_status, stream, input_tokens, cached_input_tokens,
    output_tokens, held_tokens, held_output_tokens, held_list_cost_nusd, gpu_us, ttft_us, duration_us, list_cost_nusd,
    gpu_cost_nusd, saved_cost_nusd, certainty, cache_domain, risk_level, charges, writer, seq)
SELECT ts_us, id, id, replace(id, '-7', '-8'), replace(id, '-7', '-9'), '3f1c7a9be2d45068', '2025-01-01', org, team,
    app, key_id, 'chat', model, model, runtime, if(used = 1, 'ok', 'refused'), if(used = 1, 200, 429), roll % 3 = 0,
    used * 100 + roll % 1900, 64 * used, used * (1 + roll % 255), used * 2300, used * 256, used * 303600,
    used * (1000 + roll % 99000), used * (1000 + roll % 89000), 1000 + roll % 899000, used * (1000 + roll % 299000),
    used * (100 + roll % 29900), used * 8640, 'exact', 'app', 'normal',
    [('org-day-cost', org, toDateTime(intDiv(ts_us, 1000000)), 'list_cost_nusd', toInt64(used * (roll % 299000)))],
    'bench', number + 1
FROM (
    SELECT number, cityHash64(number) AS roll, toInt64(roll % 50 != 0) AS used,
        {began:Int64} + number * {step:Int64} AS ts_us,
        intDiv(roll, 7) % 60 AS which, concat('app-', toString(which)) AS app,
        concat('team-', toString(which % 20)) AS team, concat('org-', toString(which % 5)) AS org,
        concat('key-', hex(which * 8 + intDiv(roll, 13) % 8)) AS key_id,
        intDiv(roll, 17) % 2 + which % 7 AS asked, concat('model-', toString(asked)) AS model,
        concat('vllm-', toString(asked % 4)) AS runtime,
        lower(hex(toUInt64(intDiv(ts_us, 1000)))) AS at, lower(hex(sipHash64(number))) AS tail,
        concat(substring(at, -12, 8), '-', substring(at, -4), '-7', substring(tail, 1, 3), '-8', substring(tail, 4, 3),
            '-', substring(lower(hex(sipHash64(number, 1))), 1, 12)) AS id
    FROM numbers({first:UInt64}, {count:UInt64})
)
SETTINGS max_threads = 1, max_insert_threads = 1, max_partitions_per_insert_block = 10
"""

if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
