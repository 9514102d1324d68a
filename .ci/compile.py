"""Compiles the modules that each request passes through, by mypyc, into `build/compiled`; needs a C compiler.

0 when they are compiled, or when there is no C compiler and Bursar will run as Python: about half as much CPU again.
"""

import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mypyc.build import mypycify  # noqa: E402  the root has to be on the path first
from setuptools import setup  # noqa: E402

from gateway import compiled  # noqa: E402


def main() -> int:
    """Compile unless these very sources are compiled already; 1 when the compiler failed."""
    os.chdir(ROOT)
    wanted = compiled.digest()
    if compiled.STAMP.exists() and compiled.STAMP.read_text(encoding="ascii") == wanted:
        return 0
    if shutil.which(os.environ.get("CC", "cc")) is None:
        say("There is no C compiler, so Bursar runs as Python; install one (gcc, clang) to compile it.")
        return 0
    say(f"Compiling {len(compiled.MODULES)} modules (about a minute, again whenever a source has changed)")
    shutil.rmtree(compiled.FOLDER, ignore_errors=True)
    sources = [f"{name.replace('.', '/')}.py" for name in compiled.MODULES]
    extensions = mypycify(["--config-file", "pyproject.toml", *sources], opt_level="3", target_dir="build/mypyc")
    for extension in extensions:
        # A newer compiler's new warning about generated code is no reason to stop.
        extension.extra_compile_args = [flag for flag in extension.extra_compile_args if flag != "-Werror"]
    places = ["--build-lib", str(compiled.FOLDER), "--build-temp", "build/mypyc"]
    setup(name="compiled", packages=[], py_modules=[], ext_modules=extensions, script_args=["-q", "build_ext", *places])
    compiled.STAMP.write_text(wanted, encoding="ascii")
    return 0


def say(line: str) -> None:
    """Write one line of progress to standard error."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
