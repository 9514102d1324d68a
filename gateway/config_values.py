"""Values of the configuration: bounded scalars, each with the one check that all sections share."""

import re
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
DAY_S = 86_400
SECRET_NAME = re.compile(
    r"secret|password|passwd|api_?key|credential|^(auth_|access_|bearer_)?token$|^key$|^sig", re.IGNORECASE
)

_SIZE = re.compile(r"(\d{1,15}) ?(KiB|MiB|GiB)")
_SIZE_UNIT = {"KiB": KIB, "MiB": MIB, "GiB": GIB}


def _whole(value: Any) -> Any:
    if isinstance(value, bool | float):
        raise ValueError("must be a whole number")  # noqa: TRY004  # pydantic reports ValueError by field
    return value


def _sized(value: Any) -> Any:
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    return int(match[1]) * _SIZE_UNIT[match[2]] if match else value


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number")  # noqa: TRY004  # pydantic reports ValueError by field
    return value


def web_url(value: str) -> str:
    """An http(s) URL without credentials; the message never repeats the URL, which may hold them."""
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        raise ValueError("must be http://host or https://host") from None  # the cause would quote the URL
    if "@" in parts.netloc or any(SECRET_NAME.search(name) for name, _ in parse_qsl(parts.query)):
        raise ValueError("must not hold credentials: they come from environment variables or files")
    if not usable:
        raise ValueError("must be http://host or https://host")
    return value


def unique(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same values, or ValueError where one comes twice."""
    if len(set(values)) < len(values):
        raise ValueError("must not name anything twice")
    return values


Whole = Annotated[int, BeforeValidator(_whole)]
Count = Annotated[Whole, Field(gt=0, le=1_000_000)]
Tokens = Annotated[Whole, Field(gt=0, le=100_000_000)]
Rate = Annotated[Whole, Field(ge=0, le=10**15)]
Size = Annotated[int, BeforeValidator(_whole), BeforeValidator(_sized), Field(gt=0, le=1 << 50)]
Port = Annotated[Whole, Field(ge=0, le=65_535)]
Number = Annotated[float, BeforeValidator(_number)]
Ratio = Annotated[Number, Field(ge=0, le=1)]
Seconds = Annotated[Number, Field(gt=0, le=DAY_S)]
Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:-]{0,127}$")]
Name = Annotated[str, Field(pattern=r"^\S(.{0,126}\S)?$")]
EnvName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")]
PathText = Annotated[str, Field(min_length=1, max_length=4096)]
WebUrl = Annotated[str, Field(max_length=2048), AfterValidator(web_url)]


class Section(BaseModel):
    """A part of the configuration: frozen, and with no field that is not named here."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
