"""The demo: traffic from two teams that shows what Bursar does, and the ledger's report of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
from rich.console import Console
from rich.table import Table

from gateway.cli.admin import Admin
from gateway.home import Home, write_private
from ledger.client import running
from ledger.reports import report

CONFIG = Path(__file__).with_name("demo.yaml")
_PREFIX = "You are the search assistant of Acme. Answer from the catalogue and name the shelf of every part. " * 12
_REPORTS = (("spend", ("team", "served_model")), ("cache", ("team", "model")), ("gpu", ("runtime",)), ("denials", ()))
_TEAMS = ("search", "research")


@dataclass(frozen=True, slots=True)
class Scene:
    """One thing to see: who asks, what is sent, and what should come of it."""

    name: str
    team: str
    send: Callable[[openai.OpenAI], str]


def show(home: Home, run: dict[str, Any], console: Console) -> None:
    """Send the demo's traffic with the OpenAI SDK and print what came back and what the ledger has of it."""
    url = f"http://{run['host']}:{run['port']}/v1"
    admin = Admin.of(home)
    assert admin is not None
    secrets = {team: _secret(home, admin, team) for team in _TEAMS}
    console.print(
        f"application keys: {', '.join(f'{team} {secret}' for team, secret in secrets.items())}", soft_wrap=True
    )
    console.print(f"admin key: {home.admin_secret()} (all three lie in {home.secrets})\n", soft_wrap=True, markup=False)
    clients = {team: openai.OpenAI(base_url=url, api_key=secret, max_retries=0) for team, secret in secrets.items()}
    table = Table(title="Demo traffic", title_justify="left")
    for column in ("request", "team", "what came back"):
        table.add_column(column, overflow="fold")
    for scene in SCENES:
        table.add_row(scene.name, scene.team, _outcome(scene, clients[scene.team]))
    console.print(table)
    for client in clients.values():
        client.close()
    _print_reports(home, console)
    console.print(f"\nTry it:\n  {curl(url, secrets['search'])}\n", soft_wrap=True, markup=False)


def curl(url: str, secret: str) -> str:
    """One request to try by hand."""
    body = '{"model": "sim-small", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 16}'
    headers = f"-H 'Authorization: Bearer {secret}' -H 'Content-Type: application/json'"
    return f"curl -s {url}/chat/completions {headers} -d '{body}'"


def _secret(home: Home, admin: Admin, team: str) -> str:
    """The key of a demo team, made once and kept in the home."""
    path = home.secrets / f"demo-{team}.key"
    if not path.exists():
        asked = {"org": "acme", "team": team, "app": f"{team}-assistant", "roles": ["developer"]}
        write_private(path, admin.post("/admin/keys", asked)["secret"].encode())
    return path.read_text(encoding="utf-8")


def _outcome(scene: Scene, client: openai.OpenAI) -> str:
    try:
        return scene.send(client)
    except openai.APIStatusError as error:
        wait = error.response.headers.get("retry-after")
        return _refused(error, wait)


def _refused(error: openai.APIStatusError, wait: str | None) -> str:
    body = error.body if isinstance(error.body, dict) else {}
    retry = f" (Retry-After: {wait} s)" if wait else ""
    return f"{error.status_code} {error.code}: {body.get('message', error.message)}{retry}"


def _chat(model: str, content: str, max_tokens: int) -> Callable[[openai.OpenAI], str]:
    def send(client: openai.OpenAI) -> str:
        raw = client.chat.completions.with_raw_response.create(
            model=model, messages=[{"role": "user", "content": content}], max_tokens=max_tokens
        )
        usage = raw.parse().usage
        assert usage is not None
        cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0
        degraded = raw.headers.get("x-bursar-degraded")
        said = f"200: {usage.prompt_tokens} in ({cached} cached), {usage.completion_tokens} out"
        said += f"; degraded: {degraded}" if degraded else ""
        return f"{said}; {raw.headers.get('x-bursar-budget')}"

    return send


def _stream(client: openai.OpenAI) -> str:
    chunks = client.chat.completions.create(
        model="sim-large",
        messages=[{"role": "user", "content": "Tell me about shelves."}],
        max_tokens=24,
        stream=True,
        stream_options={"include_usage": True},
    )
    seen = list(chunks)
    usage = seen[-1].usage
    assert usage is not None
    return f"200: {len(seen)} chunks, {usage.prompt_tokens} in, {usage.completion_tokens} out"


def _embed(client: openai.OpenAI) -> str:
    answer = client.embeddings.create(model="sim-embed", input=["a shelf", "a box"])
    return f"200: {len(answer.data)} vectors, {answer.usage.prompt_tokens} in"


def _until_refused(client: openai.OpenAI) -> str:
    """Send small requests until a window is full; bounded, because the demo's limit is small."""
    for sent in range(1, 61):
        try:
            client.embeddings.create(model="sim-embed", input="once more")
        except openai.RateLimitError as error:
            return f"after {sent} requests: {_refused(error, error.response.headers.get('retry-after'))}"
    return "60 requests and no limit met"


SCENES = (
    Scene("chat", "search", _chat("sim-large", "Where do the bolts lie?", 32)),
    Scene("streamed", "search", _stream),
    Scene("embeddings", "search", _embed),
    Scene("long prefix", "search", _chat("sim-large", _PREFIX + "Where are the nuts?", 16)),
    Scene("the same prefix again", "search", _chat("sim-large", _PREFIX + "And the washers?", 16)),
    Scene("another model", "research", _chat("sim-small", "Summarise the shelves.", 64)),
    Scene("a model policy does not offer", "research", _chat("sim-large", "Let me in.", 8)),
    Scene("more output than is left", "research", _chat("sim-small", "Write it all down.", 4000)),
    Scene("again, near the end of the budget", "research", _chat("sim-small", "And once more.", 4000)),
    Scene("too many in a minute", "search", _until_refused),
)


def _print_reports(home: Home, console: Console) -> None:
    client = running(home.path)
    assert client is not None
    client.flush()
    for kind, group_by in _REPORTS:
        asked = report(kind, group_by=group_by, since="1d")
        table = Table(title=asked.title, title_justify="left")
        for column in asked.columns:
            table.add_column(column, overflow="fold")
        for row in client.rows(asked.sql):
            table.add_row(*(str(row[column]) for column in asked.columns))
        console.print(table)
