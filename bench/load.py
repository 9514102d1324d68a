"""Load put on a server by a client process, from the harness's side."""

import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from typing import Final

import orjson

from bench.client import Order, Report
from bench.errors import MeasurementError

EXIT_MARGIN_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Load:
    """How much to send: `requests` in all, `concurrency` at a time, to be over within `deadline_s`."""

    requests: int
    concurrency: int
    stream: bool = False
    deadline_s: float = 120.0

    def of(self, requests: int) -> "Load":
        """The same load with another number of requests."""
        return replace(self, requests=requests)


def drive(base_url: str, headers: dict[str, str], load: Load) -> Report:
    """Send a load to a server and return the client's report. Raises MeasurementError unless every answer was right."""
    order = Order(
        url=base_url,
        headers=headers,
        stream=load.stream,
        requests=load.requests,
        concurrency=load.concurrency,
        deadline_s=load.deadline_s,
    )
    with tempfile.TemporaryFile() as told:  # a long report was once cut where a pipe was full
        try:
            ended = subprocess.run(
                [sys.executable, "-m", "bench.client"],
                input=orjson.dumps(asdict(order)),
                stdout=told,
                stderr=subprocess.PIPE,
                timeout=load.deadline_s + EXIT_MARGIN_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise MeasurementError(f"the client did not end within {error.timeout:.0f} s") from error
        if ended.returncode != 0:
            raise MeasurementError(f"the client failed: {ended.stderr.decode(errors='replace')[-2000:]}")
        told.seek(0)
        report = Report(**orjson.loads(told.read()))
    if report.failed or len(report.latencies_us) != load.requests:
        raise MeasurementError(f"{report.failed} of {load.requests} answers were wrong: {report.failures}")
    return report
