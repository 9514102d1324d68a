"""Budgets, subjects and demands for the tests of the book, small enough that limits are met all the time."""

from hypothesis import strategies as st

from domain.amounts import RESOURCES, Amounts
from ledger.budgets import Budget, Subject
from ledger.holds import Demand
from ledger.windows import parse_window

WINDOWS = ("minute", "hour", "day", "month", "total", "rolling:60s", "rolling:10m", "rolling:1d")
SCOPES = (
    (),
    (("org", "acme"),),
    (("team", "*"),),
    (("org", "acme"), ("team", "search")),
    (("org", "acme"), ("team", "search"), ("app", "*")),
    (("team", "ads"),),
    (("run", "*"),),
    (("model", "*"), ("runtime", "sim")),
)

subjects = st.builds(
    Subject,
    org=st.just("acme"),
    team=st.sampled_from(("search", "ads")),
    app=st.sampled_from(("web", "batch")),
    user=st.just(""),
    key=st.just("k1"),
    run=st.sampled_from(("", "run-1")),
    model=st.sampled_from(("small", "large")),
    runtime=st.just("sim"),
)


@st.composite
def budgets(draw: st.DrawFn, budget_id: str) -> Budget:
    resource = draw(st.sampled_from(RESOURCES))
    warn, critical = draw(st.sampled_from(((0.8, 0.95), (0.5, 0.5), (0.07, 0.93))))
    return Budget(
        id=budget_id,
        owner="finance",
        scope=draw(st.sampled_from(SCOPES)),
        resource=resource,
        limit=draw(st.integers(0, 200) | st.integers(200, 1_000)),
        window=parse_window("total" if resource == "concurrency" else draw(st.sampled_from(WINDOWS))),
        mode=draw(st.sampled_from(("hard", "hard", "soft"))),
        warn_ratio=warn,
        critical_ratio=critical,
    )


@st.composite
def demands(draw: st.DrawFn) -> Demand:
    fixed = draw(st.tuples(*[st.integers(0, 30)] * 8))
    rates = draw(st.tuples(*[st.sampled_from((0, 1, 333_333, 1_000_000, 2_500_000))] * 8))
    cap_min = draw(st.integers(0, 20))
    return Demand(
        Amounts._make((*fixed, 1, 1)),
        Amounts._make((*rates, 0, 0)),
        cap_min,
        cap_min + draw(st.sampled_from((0, 0, 1, 17, 40))),
    )
