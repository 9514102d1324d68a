"""The supervisor: what it says of a part that does not start."""

import sys
from pathlib import Path

from gateway.home import Home
from gateway.supervisor import Part, tail


def test_a_part_that_does_not_start_is_shown_by_what_it_said_this_time(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    log_path = home.logs / "ledger.log"
    log_path.write_text("the mistake of yesterday\n")
    part = Part("ledger", [sys.executable, "-c", "raise SystemExit('the mistake of today')"], log_path)
    part.start()
    assert part.process is not None
    assert part.process.wait(30) == 1
    assert tail(log_path, part.log_begins_bytes) == "the mistake of today"
    assert log_path.read_text().startswith("the mistake of yesterday\n")
