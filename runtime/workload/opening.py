"""Opening a trace: the file that a name means, the format that its content is of, and what of it is asked for."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import orjson

from runtime.workload.azure import AzureTrace, is_azure
from runtime.workload.bursar import BursarTrace, is_bursar
from runtime.workload.excerpt import Excerpt
from runtime.workload.mooncake import MooncakeTrace, is_mooncake
from runtime.workload.port import TraceError, Workload
from runtime.workload.rows import lines, wrong

FOLDER_VARIABLE = "BURSAR_TRACES"
FORMATS: Mapping[str, Callable[[Path], Workload]] = {
    "azure": AzureTrace,
    "mooncake": MooncakeTrace,
    "bursar": BursarTrace,
}
_PROJECT = Path(__file__).resolve().parents[2]
_SUFFIXES = ("", ".csv", ".jsonl")
_SHOWN_CHARS = 60


def open_workload(
    path: str | Path,
    form: str | None = None,
    *,
    requests_max: int | None = None,
    from_s: float = 0.0,
    until_s: float | None = None,
    rate: float = 1.0,
    environ: Mapping[str, str] = os.environ,
) -> Workload:
    """The workload that a trace file holds, of a format in `FORMATS` or of that which its content shows.

    A bare name is looked up among the recorded traces, with or without its suffix. That the file begins well is seen
    here; what is wrong behind the first row, when it is read. TraceError, and WorkloadError for a bad excerpt.
    """
    found = _found(path, environ)
    if form is not None and form not in FORMATS:
        raise TraceError(f"there is no trace format {form!r}: there are {', '.join(FORMATS)}")
    trace = FORMATS[form or format_of(found)](found)
    for _ in trace:
        break
    if requests_max is None and from_s == 0 and until_s is None and rate == 1:
        return trace
    return Excerpt(trace, requests_max, from_s, until_s, rate)


def traces_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where recorded traces lie: what the environment says, or `shared/traces` beside the project."""
    return Path(environ.get(FOLDER_VARIABLE) or _PROJECT.parent / "shared" / "traces")


def format_of(path: Path) -> str:
    """The name of the format of a file, by its first line. TraceError."""
    number, line = next(lines(path), (0, b""))
    if not line:
        raise TraceError(f"{path} is empty")
    if line.startswith(b"{"):
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise wrong(path, number, f"is not JSON: {error}") from error
        if is_bursar(row):
            return "bursar"
        if is_mooncake(row):
            return "mooncake"
    elif is_azure(line):
        return "azure"
    begins = line[:_SHOWN_CHARS].decode(errors="replace")
    raise TraceError(f"{path} is of no known format ({', '.join(FORMATS)}): it begins with {begins!r}")


def _found(path: str | Path, environ: Mapping[str, str]) -> Path:
    given = Path(path)
    if given.exists() or len(given.parts) != 1:
        return given
    folder = traces_folder(environ)
    for suffix in _SUFFIXES:
        if (candidate := folder / f"{given}{suffix}").is_file():
            return candidate
    raise TraceError(f"there is no trace {given} here or in {folder}, which {FOLDER_VARIABLE} can replace")
