"""Commands that compute nothing do not wait for what computes: importing it takes longer than they do."""

import json
import subprocess
import sys
from pathlib import Path

HEAVY = ("numpy", "scipy", "matplotlib", "chdb", "openai")
COMMANDS = (
    *(["--help"], ["runtime", "--help"], ["runtime", "list"], ["runtime", "describe", "x"]),
    *(["ledger", "report", "gpu"], ["ledger", "export", "focus"], ["budget", "list"]),
)
SCRIPT = """
import json, sys
from gateway.cli import main
commands, heavy = map(json.loads, sys.argv[1:])
for arguments in commands:
    sys.argv = ["bursar", *arguments]
    try:
        main()
    except SystemExit as ended:
        assert ended.code in (0, 2, 3), (arguments, ended.code)
    loaded = [name for name in heavy if name in sys.modules]
    assert not loaded, (arguments, loaded)
print("none")
"""


def test_commands_load_nothing_that_draws_or_computes(tmp_path: Path) -> None:
    asked = [[*command, *(["--home", str(tmp_path / "none")] * ("--help" not in command))] for command in COMMANDS]
    command = [sys.executable, "-c", SCRIPT, json.dumps(asked), json.dumps(HEAVY)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["none"]), done.stderr
