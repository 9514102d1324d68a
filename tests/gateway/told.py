"""What the telemetry of a runtime says of each request, read again and apart from what the gateway makes of it."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.claims import bursar_id
from runtime.telemetry.reader import Follower
from runtime.telemetry.records import Join, Leave, Open, Parser


@dataclass
class Told:
    """One request: how its handles left, and what the first join of each and their ends counted."""

    reasons: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0

    def differs_from(self, row: dict[str, Any]) -> bool:
        """Whether a row of a request with one answer was charged other tokens."""
        charged = (row.get("input_tokens", 0), row.get("cached_input_tokens", 0), row.get("output_tokens", 0))
        return (self.prompt_tokens, self.cached_tokens, self.output_tokens) != tuple(map(int, charged))


def told(folder: Path) -> dict[str, Told]:
    """Every request of the engines of a folder, by the id that Bursar sent."""
    found: dict[str, Told] = defaultdict(Told)
    seated: dict[tuple[str, int], tuple[str, str]] = {}
    away: Counter[str] = Counter()
    parser, session = Parser(), ""
    for piece in Follower(folder).read(1 << 30):
        assert piece.lost is None
        if not piece.source.startswith("engine-"):
            continue
        for record in parser.records(piece.data):
            if isinstance(record, Open) and record.session != session:
                session = record.session
                seated.clear()
            elif isinstance(record, Join):
                name = bursar_id(record.request_id)
                seated[piece.source, record.handle] = name, record.request_id
                if away[record.request_id]:
                    away[record.request_id] -= 1
                else:
                    found[name].prompt_tokens += record.prompt_tokens
                    found[name].cached_tokens += record.context_tokens
            elif isinstance(record, Leave):
                name, request_id = seated.pop((piece.source, record.handle))
                found[name].reasons[record.reason] += 1
                if record.reason == "preempted":
                    away[request_id] += 1
                else:
                    found[name].output_tokens += record.output_tokens
    return dict(found)
