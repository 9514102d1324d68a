"""A launch whose interpreter runs `fake_server.py` in place of vLLM's API server."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from runtime.vllm.launcher import VllmLaunch

FAKE = Path(__file__).with_name("fake_server.py")


def launch_of(folder: Path, behaviour: str) -> VllmLaunch:
    """A launch whose interpreter runs the fake in place of vLLM's module."""
    package = folder / "site" / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    shutil.copy(FAKE, package / "api_server.py")
    python = folder / "python"
    python.write_text(f'#!/bin/sh\ncd "{folder / "site"}" && exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    model = folder / "model"
    model.mkdir()
    (model / "behaviour").write_text(behaviour)
    return VllmLaunch(python=python, model=model, served_model_name="tiny", log=folder / "logs" / "vllm.log")
