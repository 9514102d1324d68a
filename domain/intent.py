"""Who asks, and what is asked: the facts that policies and budgets are decided on."""

from typing import NamedTuple


class Principal(NamedTuple):
    """The identified caller: who is charged and what they may be cleared for."""

    org: str
    team: str
    app: str
    user: str
    key_id: str
    roles: tuple[str, ...] = ()
    clearance: str = "internal"


class Run(NamedTuple):
    """The agent run that a request belongs to; `depth` counts the runs above it."""

    run_id: str = ""
    parent_run_id: str = ""
    depth: int = 0
    steps_band: str = "none"


NO_RUN = Run()


class Intent(NamedTuple):
    """What one request asks for, bounded before anything is spent.

    `input_bound` is the most input tokens it can take, `choices` multiplies the output, and `max_output_tokens` is the
    caller's cap per choice, or None where it named none. `priority` is where the caller steps back to in a runtime's
    queue; 0 is not to step back.
    """

    request_id: str
    principal: Principal
    endpoint: str
    model: str
    stream: bool
    input_bound: int
    max_output_tokens: int | None
    choices: int = 1
    tools: tuple[str, ...] = ()
    run: Run = NO_RUN
    cache_salt: str = ""
    priority: int = 0
