"""Compiles the modules that each request passes through, by mypyc, into `build/compiled`; needs a C compiler.

0 when they are compiled, or when this machine cannot compile and Bursar will run as Python: about a third more CPU.
1 when the compiler failed.
"""

import os
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mypyc.build import mypycify  # noqa: E402  the root has to be on the path first
from setuptools import setup  # noqa: E402

from gateway.compiled import BUILD  # noqa: E402

# C and objects, which a later build goes on from.
WORK = Path("build", "mypyc")


def main() -> int:
    """Compile unless these very sources are compiled already, or cannot be here."""
    os.chdir(ROOT)
    if BUILD.is_current():
        return 0
    missing = cleared() or lacking()
    if missing:
        say(f"{missing} Until then Bursar runs as Python.")
        return 0
    say(f"Compiling {len(BUILD.modules)} modules (about a minute, again whenever a source has changed)")
    wanted = BUILD.digest()
    sources = [f"{name.replace('.', '/')}.py" for name in BUILD.modules]
    extensions = mypycify(["--config-file", "pyproject.toml", *sources], opt_level="3", target_dir=str(WORK))
    for extension in extensions:
        # A newer compiler's new warning about generated code is no reason to stop.
        extension.extra_compile_args = [flag for flag in extension.extra_compile_args if flag != "-Werror"]
    places = ["--build-lib", str(BUILD.folder), "--build-temp", str(WORK)]
    setup(name="compiled", packages=[], py_modules=[], ext_modules=extensions, script_args=["-q", "build_ext", *places])
    BUILD.stamp.write_text(wanted, encoding="ascii")
    return 0


def cleared() -> str:
    """Remove what was compiled from other sources; a sentence where it cannot be, or nothing can be put there."""
    try:
        if BUILD.folder.exists():
            shutil.rmtree(BUILD.folder)
        BUILD.folder.mkdir(parents=True)
        WORK.mkdir(exist_ok=True)
    except OSError as error:
        return f"{error.filename} cannot be written ({error.strerror}): make it so to compile."
    return ""


def lacking() -> str:
    """What compiling takes and this machine has not, in a sentence."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
    if shutil.which(compiler) is None:
        return f"There is no C compiler ({compiler}): install one (Debian's package is gcc), or name yours in CC."
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        return f"There is a C compiler, but not {header}: install Python's headers (Debian's package is python3-dev)."
    return ""


def say(line: str) -> None:
    """Write one line of progress to standard error."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
