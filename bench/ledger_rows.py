"""What the ledger takes in, with everything that makes it a ledger, and how fast ten million rows of it are asked."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, Final

from bench.cpu import PROC
from bench.errors import MeasurementError
from bench.harness import Harness
from bench.row import Row
from ledger.client import PORT_FILE, LedgerClient, open_ledger
from ledger.reports import report

INGEST_ROWS: Final = 600_000
INGEST_ROWS_PER_S_MIN: Final = 30_000
QUERY_ROWS: Final = 10_000_000
QUERY_S_MAX: Final = 1.0
REQUEST_MS_MAX: Final = 50
PEAK_MB_MAX: Final = 1_000
ROUNDS: Final = 5
TASK_TIMEOUT_S: Final = 400
BUILD: Final = Path("build")
KB: Final = 1_000
# Over the rows themselves, where the report reads the rollups.
_SPEND: Final = """
SELECT team, toDate(ts) AS day, count(), sum(input_tokens), sum(output_tokens), sum(list_cost_nusd), sum(gpu_cost_nusd)
FROM usage WHERE ts >= now() - INTERVAL 31 DAY GROUP BY team, day ORDER BY day, team
"""
_PEAK: Final = "VmHWM:"
_BY_ID: Final = """
SELECT request_id, list_cost_nusd FROM usage
WHERE request_id = {id:String} AND org = {org:String}
    AND ts >= UUIDv7ToDateTime(toUUIDOrZero({id:String}), 'UTC')
    AND ts < UUIDv7ToDateTime(toUUIDOrZero({id:String}), 'UTC') + INTERVAL 7 DAY
LIMIT 1
"""


def ingest(harness: Harness) -> list[Row]:
    """Rows per second of CPU, all threads of the process counted, so what one core takes in."""
    return ingest_of(INGEST_ROWS)


def ingest_of(rows: int) -> list[Row]:
    """The same of so many rows."""
    ours_us, plain_us = _us_per_row("ingest", rows), _us_per_row("insert", rows)
    row = Row.at_least("ledger_ingest_rows_per_s", "rows/s CPU", 1e6 / ours_us, INGEST_ROWS_PER_S_MIN)
    ratio = round(plain_us / ours_us, 4)
    return [replace(row, reference=round(1e6 / plain_us, 3), reference_name="plain chDB insert", ratio=ratio)]


def query(harness: Harness) -> list[Row]:
    """A report over ten million rows, one request by its id, and the peak of the process that answers both."""
    return query_of(QUERY_ROWS)


def query_of(rows: int) -> list[Row]:
    """The same over so many rows."""
    with _folder() as home:
        requests = _run("fill", home, rows)["requests"]
        with open_ledger(home, f"chdb://{home / 'ledger'}") as client:
            spend_s = _median_s(client, _SPEND)
            report_s = _median_s(client, report("spend", group_by=["team", "day"], since="31d").sql)
            by_id_ms = [_request_ms(client, request_id, org) for request_id, org in requests]
            peak_mb = _peak_mb(home)
    return [
        Row.at_most("ledger_query_10m_s", "s", spend_s, QUERY_S_MAX),
        Row.at_most("ledger_report_10m_s", "s", report_s, QUERY_S_MAX),
        Row.at_most("ledger_request_10m_ms", "ms", median(by_id_ms), REQUEST_MS_MAX),
        Row.at_most("ledger_rss_10m_mb", "MB", peak_mb, PEAK_MB_MAX),
    ]


@contextmanager
def _folder() -> Iterator[Path]:
    BUILD.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD, prefix="bench-ledger-") as folder:
        yield Path(folder).resolve()


def _us_per_row(task: str, rows: int) -> float:
    with _folder() as folder:
        return float(_run(task, folder, rows)["us_per_row"])


def _run(name: str, folder: Path, rows: int) -> dict[str, Any]:
    """What a task of `bench.ledger_child` prints."""
    command = [sys.executable, "-m", "bench.ledger_child", name, str(folder), str(rows)]
    done = subprocess.run(command, check=False, capture_output=True, timeout=TASK_TIMEOUT_S, env=dict(os.environ))
    if done.returncode != 0:
        raise MeasurementError(f"{name}: {done.stderr.decode(errors='replace')[-500:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _median_s(client: LedgerClient, sql: str) -> float:
    times = []
    for _ in range(ROUNDS):
        began_s = time.perf_counter()
        rows = client.rows(sql)
        times.append(time.perf_counter() - began_s)
        assert rows
    return median(times)


def _request_ms(client: LedgerClient, request_id: str, org: str) -> float:
    began_s = time.perf_counter()
    rows = client.rows(_BY_ID, id=request_id, org=org)
    took_ms = (time.perf_counter() - began_s) * 1_000
    if [row["request_id"] for row in rows] != [request_id]:
        raise MeasurementError(f"the request {request_id} was not found")
    return took_ms


def _peak_mb(home: Path) -> float:
    """The most that the ledger process ever had resident."""
    pid = json.loads((home / PORT_FILE).read_text(encoding="utf-8"))["pid"]
    lines = (PROC / str(pid) / "status").read_text(encoding="utf-8").splitlines()
    [peak] = [line for line in lines if line.startswith(_PEAK)]
    return int(peak.split()[1]) * 1_024 / KB / KB
