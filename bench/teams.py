"""The shipped bundle with a hundred teams in its table, and inputs that all differ, over every team in turn."""

import json
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Final

from policy.port import PolicyInput

BUNDLE: Final = Path("rego")
TEAMS: Final = 100


def bundle(folder: Path) -> Path:
    """The shipped bundle in a folder that is not there yet, with more teams in its table of admissions."""
    shutil.copytree(BUNDLE, folder)
    file = folder / "bursar" / "admission" / "data.json"
    table = json.loads(file.read_text(encoding="utf-8"))
    offered = table["rows"]["acme"]["search"]["*"]
    table["rows"]["acme"].update({f"team{number}": {"*": offered} for number in range(TEAMS)})
    file.write_text(json.dumps(table), encoding="utf-8")
    return folder


def inputs() -> Iterator[PolicyInput]:
    """Inputs that all differ and are all admitted."""
    for number in count():
        team, app = f"team{number % TEAMS}", f"app{number}"
        yield PolicyInput("acme", team, app, (), "internal", "chat", "sim-small", per_resource=(("tokens", "ok"),))
