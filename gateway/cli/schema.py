"""`bursar ledger schema`: the ledger's tables as SQL, for who keeps them in a cluster of ClickHouse's."""

from typing import Annotated

import typer

from ledger.cluster import rendered
from ledger.migrations import shipped


def schema(
    cluster: Annotated[str, typer.Option(help="The cluster's name, as its servers' configuration has it.")],
) -> None:
    """Print the schema for a ClickHouse cluster: replicated tables, distributed by organisation."""
    typer.echo(rendered(shipped(), cluster), nl=False)
