"""The books: everything the ledger has of a session beside everything that vLLM counted, as text for people."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.e2e.governed import Governed
from tests.e2e.reconciliation import Bounds, expected_of_all

REPORTS = (("spend", ("team", "served_model")), ("cache", ("team", "model")), ("gpu", ("runtime",)))
ROWS_SQL = "SELECT * EXCEPT (charges) FROM usage ORDER BY ts"
WIDTH = 140


@dataclass(frozen=True, slots=True)
class Account:
    """One quantity: what the rows of the ledger allow, and what vLLM counted."""

    what: str
    ledger: int
    allowed: Bounds
    vllm: int

    @property
    def agrees(self) -> bool:
        """Whether vLLM counted what the rows allow."""
        return self.vllm in self.allowed


@dataclass(frozen=True, slots=True)
class Books:
    """The accounts of a session and the text that shows them."""

    accounts: tuple[Account, ...]
    text: str

    @property
    def disagreements(self) -> list[Account]:
        """The accounts that do not agree."""
        return [account for account in self.accounts if not account.agrees]

    @classmethod
    def of(cls, governed: Governed) -> Books:
        """Close the books of a deployment whose servers are at rest; the rows come from `bursar ledger query`."""
        deployment = governed.deployment
        accounts = _accounts(governed, deployment.rows(ROWS_SQL))
        reports = [deployment.report(kind, group_by) for kind, group_by in REPORTS]
        console = Console(file=io.StringIO(), width=WIDTH, highlight=False)
        console.print(_accounts_table(accounts))
        console.print(_episodes_table(governed))
        assert isinstance(console.file, io.StringIO)
        return cls(accounts, "\n".join([*reports, console.file.getvalue()]))


def _accounts(governed: Governed, rows: Sequence[dict[str, Any]]) -> tuple[Account, ...]:
    generated = [row for row in rows if row["runtime"] == "vllm"]
    cut = [row for row in generated if row["certainty"] != "exact"]
    embedded = _sum([row for row in rows if row["runtime"] == "vllm-embed"], "input_tokens")
    cached = _sum(generated, "cached_input_tokens")
    allowed = expected_of_all(generated, governed.choices)
    before, after = governed.started, governed.quiet_sample()
    prompt = after.prompt_tokens_total - before.prompt_tokens_total
    generation = after.generation_tokens_total - before.generation_tokens_total
    hits = after.prefix_cache_hits - before.prefix_cache_hits
    embedding = governed.quiet_sample(governed.embed_url).prompt_tokens_total
    # vLLM says how much was cached only at the end of an answer.
    allowed_hits = Bounds(cached, cached + _sum(cut, "input_tokens"))
    return (
        Account("prompt tokens", _sum(generated, "input_tokens"), allowed.prompt, prompt),
        Account("generated tokens", _sum(generated, "output_tokens"), allowed.generation, generation),
        Account("cached prompt tokens", cached, allowed_hits, hits),
        Account("prompt tokens of embeddings", embedded, Bounds(embedded, embedded), embedding),
    )


def _accounts_table(accounts: Sequence[Account]) -> Table:
    table = Table(title="The ledger beside vLLM's own counters", title_justify="left")
    for column in ("counted", "ledger", "vLLM must have", "vLLM has", "agrees"):
        table.add_column(column, justify="left" if column == "counted" else "right")
    for each in accounts:
        table.add_row(each.what, str(each.ledger), str(each.allowed), str(each.vllm), "yes" if each.agrees else "NO")
    return table


def _episodes_table(governed: Governed) -> Table:
    table = Table(title="Episodes, each from one rest of vLLM to the next", title_justify="left")
    for column in ("episode", "requests", "exact", "prompt must be", "is", "generation must be", "is", "agrees"):
        table.add_column(column, justify="left" if column == "episode" else "right")
    for each in governed.counted:
        exact = sum(row["certainty"] == "exact" for row in each.rows)
        prompt, generation = each.allowed
        counts = (len(each.rows), exact, prompt, each.prompt, generation, each.generation)
        table.add_row(each.episode, *map(str, counts), "yes" if each.agrees else "NO")
    return table


def _sum(rows: Sequence[dict[str, Any]], column: str) -> int:
    return sum(row[column] for row in rows)
