"""The demo without the extra that it needs says which one, and starts nothing."""

import subprocess
import sys
from pathlib import Path

WITHOUT = "import sys; sys.modules['openai'] = None; from gateway.cli import main; main()"


def test_a_demo_without_its_sdk_names_the_extra(tmp_path: Path) -> None:
    home = tmp_path / "home"
    command = [sys.executable, "-c", WITHOUT, "up", "--demo", "--once", "--home", str(home)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "bursar: the demo needs openai: install Bursar with its extra `demo`\n"
    assert not home.exists()
