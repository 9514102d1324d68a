"""A journal whose writer is killed with -9 at any moment loses nothing that it had taken, doubles nothing, and goes on.

`make soak` kills more often: BURSAR_KILLS says how many times.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = int(os.environ.get("BURSAR_KILLS", "200"))
SEED = int.from_bytes(os.urandom(4), "big")


@pytest.mark.timeout(120 + KILLS)
def test_kill_nine_at_any_moment_loses_no_acknowledged_record(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.ledger.journal_killer", str(tmp_path / "w"), str(KILLS), str(SEED)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"seed {SEED}: {done.stderr}"
    seen = json.loads(done.stdout)
    assert seen["kills"] == KILLS
    assert seen["records"] > 10 * KILLS
    assert seen["rotations"] > KILLS // 10
    assert seen["silent"] < KILLS // 2, "most writers had acknowledged something before they were killed"
