"""A policy bundle: the modules and tables under one folder, bounded in size, named by a digest of their content."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import yaml

from policy.port import BundleError
from policy.source import references, statements

FILES_MAX = 1_000
BUNDLE_BYTES_MAX = 16 * 1024 * 1024

# What the answer of these depends on is not in the input, so a decision could be neither cached nor re-evaluated.
FORBIDDEN_BUILTINS = frozenset(
    {
        "crypto.x509.parse_and_verify_certificates",
        "crypto.x509.parse_and_verify_certificates_with_options",
        "http.send",
        "io.jwt.decode_verify",
        "io.jwt.encode_sign",
        "io.jwt.encode_sign_raw",
        "json.match_schema",
        "json.verify_schema",
        "net.lookup_ip_addr",
        "opa.runtime",
        "providers.aws.sign_req",
        "rand.intn",
        "time.now_ns",
        "uuid.rfc4122",
    }
)

_TEST_SUFFIX = "_test.rego"
_DATA_NAMES = frozenset({"data.json", "data.yaml", "data.yml"})
SCHEMAS = "schemas/data/"


@dataclass(frozen=True, slots=True)
class Module:
    """One Rego file: its path in the bundle, with slashes, and its text."""

    file: str
    text: str

    @property
    def is_test(self) -> bool:
        """Whether it holds tests, which do not serve."""
        return self.file.endswith(_TEST_SUFFIX)


@dataclass(frozen=True, slots=True)
class Bundle:
    """The serving modules and the tables of a folder; `revision` covers both, `tests` are apart.

    `folders` are the paths at which the files with tables lie.
    """

    root: Path
    modules: tuple[Module, ...]
    tests: tuple[Module, ...]
    data: dict[str, Any]
    folders: tuple[tuple[str, ...], ...]
    revision: str


def load(root: Path | str) -> Bundle:
    """The bundle in a folder; raises BundleError where it is missing, too large, ambiguous or not deterministic."""
    return assemble(root, files_of(root))


def assemble(root: Path | str, contents: Mapping[str, bytes]) -> Bundle:
    """The bundle of files by their sorted paths in it; raises BundleError as `load` does."""
    folder = Path(root)
    modules: list[Module] = []
    data: dict[str, Any] = {}
    folders: list[tuple[str, ...]] = []
    for file, content in contents.items():
        if file.endswith(".rego"):
            modules.append(Module(file, _text(file, content)))
        elif not is_schema(file):
            _merge(file, data, _shallow(file, _nested(file, _table(file, content))))
            folders.append(tuple(file.split("/")[:-1]))
    for module in modules:
        _refuse_forbidden(module)
    serving = tuple(module for module in modules if not module.is_test)
    if not serving:
        raise BundleError(str(folder), 0, "no .rego file that is not a test")
    tests = tuple(module for module in modules if module.is_test)
    return Bundle(folder, serving, tests, data, tuple(folders), revision_of(contents))


def files_of(root: Path | str) -> dict[str, bytes]:
    """The files of a bundle by their sorted paths; hidden ones are passed over: mounted volumes keep copies there."""
    folder = Path(root)
    if not folder.is_dir():
        raise BundleError(str(folder), 0, "no such folder")
    paths: list[Path] = []
    seen = {folder.resolve()}
    # Links to folders are followed: a mounted volume has one for each folder of its own.
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = Path(parent).relative_to(folder)
        for name in folders:
            real = Path(parent, name).resolve()
            if real in seen:
                raise BundleError((inside / name).as_posix(), 0, "a link to a folder that the bundle has already")
            seen.add(real)
        paths += [Path(parent, name) for name in files if _belongs((inside / name).as_posix(), name)]
        if len(paths) > FILES_MAX or len(seen) > FILES_MAX:
            raise BundleError(str(folder), 0, f"more than {FILES_MAX} files or folders")
    contents: dict[str, bytes] = {}
    left = BUNDLE_BYTES_MAX
    for path in sorted(paths):
        file = path.relative_to(folder).as_posix()
        try:
            with path.open("rb") as stream:
                contents[file] = stream.read(left + 1)
        except OSError as error:
            raise BundleError(file, 0, f"cannot be read: {error.strerror}") from error
        left -= len(contents[file])
        if left < 0:
            raise BundleError(file, 0, f"the bundle is larger than {BUNDLE_BYTES_MAX} bytes")
    return contents


def is_schema(file: str) -> bool:
    """Whether a file of a bundle is a JSON schema of a table."""
    return file.startswith(SCHEMAS) and file.endswith(".json")


def _belongs(file: str, name: str) -> bool:
    return not name.startswith(".") and (name.endswith(".rego") or name in _DATA_NAMES or is_schema(file))


def _text(file: str, content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(file, content[: error.start].count(b"\n") + 1, "not UTF-8") from error


def _table(file: str, content: bytes) -> dict[str, Any]:
    try:
        table = orjson.loads(content) if file.endswith(".json") else _yaml(file, _text(file, content))
    except orjson.JSONDecodeError as error:
        raise BundleError(file, error.lineno, error.msg) from error
    if not isinstance(table, dict):
        raise BundleError(file, 1, "a table must be an object")
    return table


def _yaml(file: str, text: str) -> object:
    try:
        for event in yaml.parse(text, yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise BundleError(file, _line(event.start_mark), "aliases are not allowed")
        return orjson.loads(orjson.dumps(yaml.safe_load(text)))
    except yaml.MarkedYAMLError as error:
        raise BundleError(file, _line(error.problem_mark), error.problem or "not YAML") from error
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        raise BundleError(file, 0, f"not a table of JSON values: {error}") from error


def _line(mark: Any) -> int:
    return int(mark.line) + 1 if mark else 0


def _nested(file: str, table: dict[str, Any]) -> dict[str, Any]:
    """A table under the path of its folder, as OPA roots it."""
    for name in reversed(file.split("/")[:-1]):
        table = {name: table}
    return table


def _shallow(file: str, table: dict[str, Any]) -> dict[str, Any]:
    """The table, unless it is nested deeper than it could be handed to an engine."""
    try:
        orjson.dumps(table)
    except TypeError as error:
        raise BundleError(file, 0, f"nested too deep: {error}") from error
    return table


def _merge(file: str, into: dict[str, Any], table: dict[str, Any]) -> None:
    for key, value in table.items():
        if key not in into:
            into[key] = value
        elif isinstance(into[key], dict) and isinstance(value, dict):
            _merge(file, into[key], value)
        else:
            raise BundleError(file, 0, f"{key!r} is given by another file too")


def _refuse_forbidden(module: Module) -> None:
    for statement in statements(module.file, module.text):
        for reference in references(statement):
            for length in range(2, len(reference.path) + 1):
                name = ".".join(reference.path[:length])
                if name in FORBIDDEN_BUILTINS:
                    raise BundleError(module.file, reference.line, f"{name} is not deterministic")


def revision_of(contents: Mapping[str, bytes]) -> str:
    """The digest of what serves: each path and content with its length, so that no two bundles read alike."""
    digest = hashlib.sha256()
    for file, content in contents.items():
        if file.endswith(_TEST_SUFFIX):
            continue
        for part in (file.encode(), content):
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
    return f"sha256:{digest.hexdigest()}"
