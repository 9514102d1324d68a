"""LiteLLM's environment: made once per lock file, and locked without index addresses."""

import re
import subprocess
from pathlib import Path

import pytest

from bench.litellm_environment import LOCK, ensure


def test_the_environment_is_made_again_only_when_the_lock_changes(tmp_path: Path) -> None:
    lock = tmp_path / "empty.lock"
    lock.write_text("# nothing to install\n")
    environment = tmp_path / "environment"

    executables = ensure(environment, lock)
    assert (executables / "python").exists()
    marker = environment / "made-once"
    marker.touch()
    assert ensure(environment, lock) == executables
    assert marker.exists()

    lock.write_text("# changed\n")
    ensure(environment, lock)
    assert not marker.exists()


def test_an_interrupted_install_is_done_again(tmp_path: Path) -> None:
    lock = tmp_path / "empty.lock"
    lock.write_text("")
    environment = tmp_path / "environment"
    executables = ensure(environment, lock)
    (environment / "lock.sha256").unlink()  # it is written last, so an interrupted install has none
    (environment / "half-installed").touch()
    assert ensure(environment, lock) == executables
    assert not (environment / "half-installed").exists()


def test_a_folder_that_is_no_environment_is_not_cleared(tmp_path: Path) -> None:
    lock = tmp_path / "empty.lock"
    lock.write_text("")
    precious = tmp_path / "environment" / "precious"
    precious.parent.mkdir()
    precious.touch()
    with pytest.raises(subprocess.CalledProcessError):
        ensure(precious.parent, lock)
    assert precious.exists()


def test_the_lock_pins_and_hashes_everything_and_names_no_index() -> None:
    text = LOCK.read_text()
    assert "://" not in text
    assert not re.search(r"^--?(index|extra|find|trusted)", text, re.MULTILINE)
    requirements = [line for line in text.splitlines() if re.match(r"[a-z0-9]", line, re.IGNORECASE)]
    assert any(line.startswith("litellm==") for line in requirements)
    for line in requirements:
        assert re.match(r"[A-Za-z0-9_.\-\[\],]+==\S+ .*\\$", line), line
    assert text.count("\n    --hash=sha256:") >= len(requirements)
