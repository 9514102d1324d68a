"""What is installed has all that it opens when it runs: the policies with their schemas, the SQL, the Lua, the demo."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("domain", "policy", "ledger", "runtime", "observability", "gateway")


def files_under(folder: str) -> set[str]:
    found = (path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in found}


def test_a_wheel_holds_every_file_of_the_packages_and_the_shipped_bundle(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    own = set().union(*map(files_under, PACKAGES))
    bundle = {file.replace("rego/", "policy/bundle/", 1) for file in files_under("rego")}
    assert {"policy/bundle/schemas/data/admission.json", "policy/bundle/schemas/input/admission.json"} <= bundle
    assert held == own | bundle
