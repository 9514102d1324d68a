"""Builds what an OPA server polls: one signed file of a bundle, whose revision is Bursar's own digest of it.

The `opa` binary compiles, signs and verifies; the file holds the modules that serve and the tables, not the tests.
"""

import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from policy.bundle import FORBIDDEN_BUILTINS, Bundle, load
from policy.lint import rule_lines
from policy.port import ADMISSION, BundleError

OPA_TIMEOUT_S = 60
ALGORITHM = "ES256"
KEY_ID = "bursar"
SCOPE = "bursar"
# The Rego that both engines know; a later OPA compiles it too.
REGO_OF = "v1.14.0"

# They can hide calls from the embedded engine's own check.
_FEATURES_REFUSED = frozenset({"template_strings"})
_PLACE = re.compile(r"(?m)(?P<file>[^\s:]+\.(?:rego|json|yaml)):(?P<line>\d+): (?P<message>.+)$")
_PREFIX = re.compile(r"^error: (?:load error: )?(?:bundle \S+: )?")
_SAID_CHARACTERS_MAX = 500


@dataclass(frozen=True, slots=True)
class Key:
    """A PEM file to sign or to verify with, and what the signature must say of itself."""

    file: Path
    key_id: str = KEY_ID
    scope: str = SCOPE
    algorithm: str = ALGORITHM


class Built(NamedTuple):
    """A bundle file: its revision, whether a key has been seen to have signed it, and its size."""

    revision: str
    is_signed: bool
    size_bytes: int


def build(root: Path | str, output: Path, opa: str, key: Key | None = None, public_key: Key | None = None) -> Built:
    """Write the bundle in a folder as one file for OPA, signed where a key is given; raises BundleError.

    What is there stays when it fails, also when a public key is given that does not verify what was signed.
    """
    bundle = load(root)
    if ADMISSION not in rule_lines(bundle.modules):
        raise BundleError(str(root), 0, f"no rule data.{ADMISSION.replace('/', '.')}")
    with tempfile.TemporaryDirectory(prefix="bursar-bundle-") as folder:
        stage, claims, capable = (Path(folder, name) for name in ("stage", "claims.json", "capabilities.json"))
        _write(bundle, stage)
        capable.write_bytes(capabilities(opa))
        arguments = ["--capabilities", str(capable), "--output", str(Path(folder, "bundle.tar.gz"))]
        if key is not None:
            claims.write_bytes(orjson.dumps({"keyid": key.key_id, "scope": key.scope}))
            arguments += ["--signing-key", str(_pem(key.file)), "--signing-alg", key.algorithm]
            arguments += ["--claims-file", str(claims)]
        _run([opa, "build", "--bundle", ".", *arguments], stage)
        if public_key is not None:
            verify(Path(folder, "bundle.tar.gz"), opa, public_key)
        content = Path(folder, "bundle.tar.gz").read_bytes()
    _replace(output, content)
    return Built(bundle.revision, key is not None, len(content))


def verify(file: Path, opa: str, key: Key) -> Built:
    """What a bundle file says it is, once its signature is seen to be that of a public key; raises BundleError."""
    if not file.is_file():
        raise BundleError(str(file), 0, "no such file")
    with tempfile.TemporaryDirectory(prefix="bursar-bundle-") as folder:
        arguments = ["--verification-key", str(_pem(key.file)), "--verification-key-id", key.key_id]
        arguments += ["--signing-alg", key.algorithm, "--scope", key.scope, "--output", "verified.tar.gz"]
        _run([opa, "build", "--bundle", str(file.resolve()), *arguments], Path(folder))
    said = _json(_run([opa, "inspect", "--format", "json", str(file.resolve())], file.resolve().parent), file)
    manifest = said.get("manifest")
    return Built(str((manifest or {}).get("revision", "")), is_signed=True, size_bytes=file.stat().st_size)


def capabilities(opa: str) -> bytes:
    """The capabilities file that OPA compiles with: the builtins of the Rego that both engines know, but for those
    whose answer depends on more than their arguments, and no host to reach. Raises BundleError."""
    said = _json(_run([opa, "capabilities", "--version", REGO_OF], Path.cwd()), Path(opa))
    said["builtins"] = [each for each in said["builtins"] if _is_deterministic(each)]
    said["features"] = [each for each in said["features"] if each not in _FEATURES_REFUSED]
    said["allow_net"] = []
    return orjson.dumps(said, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)


def _is_deterministic(builtin: dict[str, Any]) -> bool:
    return builtin["name"] not in FORBIDDEN_BUILTINS and not builtin.get("nondeterministic", False)


def _write(bundle: Bundle, stage: Path) -> None:
    for module in bundle.modules:
        path = stage / module.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(module.text, encoding="utf-8")
    (stage / "data.json").write_bytes(orjson.dumps(bundle.data))
    packages = {path.split("/")[0] for path in rule_lines(bundle.modules)}
    manifest = {"revision": bundle.revision, "roots": sorted(packages | bundle.data.keys()), "rego_version": 1}
    (stage / ".manifest").write_bytes(orjson.dumps(manifest))


def _pem(file: Path) -> Path:
    """The path of a key; what is no PEM file would be taken for a shared secret, which a process list shows."""
    try:
        is_pem = b"-----BEGIN " in file.read_bytes()
    except OSError as error:
        raise BundleError(str(file), 0, f"the key cannot be read: {error.strerror}") from error
    if not is_pem:
        raise BundleError(str(file), 0, "is not a key in PEM form")
    return file.resolve()


def _run(command: Sequence[str], folder: Path) -> bytes:
    """What a command of OPA's printed; raises BundleError with the first mistake that it names."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, timeout=OPA_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BundleError(command[0], 0, f"cannot be run: {error}") from error
    if done.returncode == 0:
        return done.stdout
    said = (done.stderr.strip() or done.stdout.strip()).decode(errors="replace")
    place = _PLACE.search(said)
    if place is not None:
        raise BundleError(place["file"], int(place["line"]), place["message"])
    reason = " ".join(_PREFIX.sub("", said).split())[:_SAID_CHARACTERS_MAX]
    raise BundleError(f"opa {command[1]}", 0, reason)


def _json(text: bytes, file: Path) -> dict[str, Any]:
    try:
        said = orjson.loads(text)
    except ValueError as error:
        raise BundleError(str(file), 0, f"opa said what is not JSON: {text[:80]!r}") from error
    if not isinstance(said, dict):
        raise BundleError(str(file), 0, "opa said what is not an object")
    return said


def _replace(output: Path, content: bytes) -> None:
    """Put the file in place in one step: who serves it never serves a half of it."""
    partial = output.with_name(f".{output.name}.partial")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        os.replace(partial, output)
    except OSError as error:
        raise BundleError(str(output), 0, f"cannot be written: {error.strerror}") from error
