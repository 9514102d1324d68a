"""`bursar replica`: the gateways that share a book, as its Redis knows them, and the release of one that is lost."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from redis import Redis
from redis.exceptions import RedisError

from gateway.assembly import replica_of
from gateway.cli.admin import Admin
from gateway.cli.offline import opened
from gateway.cli.options import CONFIG, HOME, ConfigOption, HomeOption, JsonOption
from gateway.cli.output import complain, console, print_json, print_rows
from gateway.cli.shared_store import client_of, in_force
from gateway.config_file import load
from gateway.home import Home
from ledger import replicas
from ledger.replicas import Replica, Unspent

app = typer.Typer(help="The gateways that share a book, and what a lost one had leased.", no_args_is_help=True)
ROWS_MAX = 200
_COLUMNS = ("replica", "here", "unseen_s", "counters", "unspent")


@app.command("list")
def list_replicas(home: HomeOption = HOME, config: ConfigOption = CONFIG, as_json: JsonOption = False) -> None:
    """List the gateways that Redis has seen, the one longest unseen first, and what each has leased and not spent."""
    at_home = Home.found(home)
    here = {} if at_home is None else _journals(at_home)
    with _asked(at_home, config) as client:
        known = replicas.seen_replicas(client)
        # Those longest unseen are what one comes for: where there are too many, forgetting them shows the next.
        rows = [_row(each, replicas.unspent(client, each), here) for each in known[:ROWS_MAX]]
    if not as_json:
        rows = [{**row, "unspent": _said(row["unspent"])} for row in rows]
    print_rows("Replicas", rows, _COLUMNS, as_json=as_json)
    if len(known) > ROWS_MAX:
        complain(f"{len(known) - ROWS_MAX:,} more were seen since")


@app.command()
def forget(
    name: Annotated[str, typer.Argument(help="As `replica list` has it.")],
    home: HomeOption = HOME,
    config: ConfigOption = CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Free what a gateway whose journal is lost had leased and not reported as spent; only if it never runs again."""
    here = _journals(Home(home))
    with _asked(Home(home), config) as client:
        known = next((each for each in replicas.seen_replicas(client) if each.name == name), None)
        if known is None:
            complain(f"Redis has seen no replica {name}: `bursar replica list` has their names")
            raise typer.Exit(2)
        if name in here:
            start = f"start it with `bursar serve --replica {replica_of(name)}`"
            complain(
                f"the journal of {name} is here: {start}, and it reports what it spent and gives back the rest; "
                f"if it cannot be read any more, remove {here[name]} first"
            )
            raise typer.Exit(1)
        freed = replicas.forget(client, known)
    _record(Home(home), config, known, freed)
    if as_json:
        print_json(_row(known, freed, here))
    else:
        what = ", ".join(_said(freed.amounts)) or "nothing"
        console().print(f"freed what {name} had leased: {what}, on {freed.counters:,} counters", markup=False)


@contextmanager
def _asked(home: Home | None, config: Path) -> Iterator[Redis]:
    """The Redis of the book; what it does not answer ends the command."""
    path = in_force(home, config)
    book = load(path).config.book
    if not book.is_shared:
        complain(f"the book of {path} is in memory: only gateways that share one through Redis have leases")
        raise typer.Exit(2)
    try:
        client = client_of(book)
    except ValueError as error:
        complain(f"book.url {book.url}: {error}")
        raise typer.Exit(2) from error
    try:
        yield client
    except RedisError as error:
        complain(f"{book.url}: {' '.join(str(error).split())}; once it answers, give this command again")
        raise typer.Exit(3) from error
    finally:
        client.close()


def _journals(home: Home) -> dict[str, Path]:
    """The journals of a home by their names, which are those of its replicas."""
    return {path.name: path for path in home.journal.iterdir() if path.is_dir()}


def _record(home: Home, config: Path, replica: Replica, freed: Unspent) -> None:
    """Let the ledger have who freed what: by a gateway of this home, or in the journal of one that does not run."""
    said = {"replica": replica.name, "counters": freed.counters, "freed": freed.amounts}
    admin = Admin.of(home)
    if admin is not None:
        admin.post("/admin/replicas/forgotten", said)
        return
    with opened(home, config) as (_, controls):
        controls.forgot_replica(replica.name, freed.counters, freed.amounts, actor="cli")


def _row(replica: Replica, has: Unspent, here: dict[str, Path]) -> dict[str, Any]:
    return {
        "replica": replica.name,
        "here": replica.name in here,
        "unseen_s": round(replica.unseen_s, 1),
        "counters": has.counters,
        "unspent": has.amounts,
        "leases": has.shown,
    }


def _said(amounts: dict[str, int]) -> list[str]:
    return [f"{amount:,} {resource}" for resource, amount in sorted(amounts.items())]
