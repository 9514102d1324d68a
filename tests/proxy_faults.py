"""The faults of a proxy, as values that can be written as JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self

ANY = "*"


class BadFault(ValueError):
    """There is no such fault, or not with such a value; the message says which there are."""


@dataclass(frozen=True, slots=True)
class Way:
    """The faults of one direction.

    `delay_s` and up to `jitter_s` more before bytes go on, in order; `byte_s`: each byte goes alone, with this pause;
    `cut`: nothing goes on until it is healed, and then all of it, as a network does whose partition ends;
    `reset_after_bytes`: a connection ends once this many bytes of it have gone on, to the byte.
    """

    delay_s: float = 0.0
    jitter_s: float = 0.0
    byte_s: float = 0.0
    cut: bool = False
    reset_after_bytes: int | None = None

    def __post_init__(self) -> None:
        if min(self.delay_s, self.jitter_s, self.byte_s, self.reset_after_bytes or 0) < 0:
            raise BadFault(f"seconds and bytes are not negative: {self}")


@dataclass(slots=True)
class Trigger:
    """The next `times` commands that begin with the words of `command`, whatever follows them; `*` is any command."""

    command: str
    times: int = 1

    def fires(self, words: tuple[str, ...]) -> bool:
        """Whether this is such a command, which then is one fewer to come."""
        wanted = self.command.split()
        is_meant = self.command == ANY or [word.upper() for word in words[: len(wanted)]] == [
            word.upper() for word in wanted
        ]
        if not is_meant or self.times < 1:
            return False
        self.times -= 1
        return True


@dataclass(frozen=True, slots=True)
class Faults:
    """All faults of a proxy; by default there is none.

    `refuse`: nobody listens, connections that there are go on. `reset_at_connect`: a connection is reset once it is
    made. `freeze`: connections that there are, and new ones, swallow what comes, answer nothing, and close nothing.
    `reset_on`: the connection is reset, and the command never arrives. `lose_reply`: the command arrives and is
    executed; once its reply is there the connection is reset instead.
    """

    to_server: Way = field(default_factory=Way)
    to_client: Way = field(default_factory=Way)
    refuse: bool = False
    reset_at_connect: bool = False
    freeze: bool = False
    reset_on: Trigger | None = None
    lose_reply: Trigger | None = None

    def changed(self, changes: Mapping[str, Any]) -> Self:
        """These faults with some of them switched; ways and triggers may be mappings. BadFault."""
        return replace(self, **{name: _value(self, name, value) for name, value in changes.items()})


def _value(faults: Faults, name: str, value: Any) -> Any:
    known = {each.name for each in fields(Faults)}
    if name not in known:
        raise BadFault(f"there is no fault {name!r}; there are {', '.join(sorted(known))}")
    if not isinstance(value, Mapping):
        if not isinstance(value, bool | Way | Trigger | None):
            raise BadFault(f"{name} is true or false, or has fields, not {value!r}")
        return value
    kind = Way if name in ("to_server", "to_client") else Trigger
    # What is not said of a way stays as it is.
    before = asdict(getattr(faults, name)) if kind is Way else {}
    try:
        return kind(**{**before, **value})
    except TypeError as error:
        raise BadFault(f"{name}: {error}; it has {', '.join(each.name for each in fields(kind))}") from None
