"""Revisions of a configuration: when two are the same, and what differs between two."""

from pathlib import Path

from gateway.config_file import LoadedConfig, diff, load

NOW_S = 1_760_000_000
TEXT = """\
version: 1
policy: {url: "embedded:"}
runtimes:
  - id: sim
    owner: platform
    url: sim://
    gpus: 2
models:
  - id: small
    owner: platform
    runtimes: [sim]
    endpoints: [chat]
    context_tokens: 4096
    price:
      - valid_from: 2025-01-01
        input_nusd_per_mtok: 100
        output_nusd_per_mtok: 200
budgets:
  - id: day
    owner: finance
    scope: {org: acme, team: "*"}
    resource: tokens
    limit: 1000
    window: day
"""


def loaded(folder: Path, text: str = TEXT, env: dict[str, str] | None = None) -> LoadedConfig:
    file = folder / "bursar.yaml"
    file.write_text(text)
    return load(file, env or {}, lambda: NOW_S)


def changed(old: str, new: str) -> str:
    assert old in TEXT
    return TEXT.replace(old, new, 1)


def test_the_digest_depends_on_what_takes_effect_and_on_nothing_else(tmp_path: Path) -> None:
    digest = loaded(tmp_path).digest
    reordered = changed("    owner: platform\n    url: sim://\n", "    url: sim:// # here\n    owner: platform\n")
    spelled_out = "listen: {port: 8080}\n" + TEXT
    assert len(digest) == 64
    assert loaded(tmp_path, reordered).digest == digest
    assert loaded(tmp_path, spelled_out).digest == digest
    assert loaded(tmp_path, env={"BURSAR_LISTEN__PORT": "8080"}).digest == digest
    assert loaded(tmp_path, env={"BURSAR_LISTEN__PORT": "1"}).digest != digest
    assert loaded(tmp_path, changed("limit: 1000", "limit: 1001")).digest != digest


def test_diff_names_what_changed_by_id(tmp_path: Path) -> None:
    old = loaded(tmp_path).config
    new = loaded(
        tmp_path,
        changed("limit: 1000", "limit: 2000").replace("gpus: 2", "gpus: 3")
        + "  - {id: hour, owner: f, scope: {}, resource: tokens, limit: 1, window: hour}\n",
    ).config
    assert diff(old, new) == ["budgets.day.limit", "budgets.hour", "runtimes.sim.gpus"]
    assert diff(new, old) == ["budgets.day.limit", "budgets.hour", "runtimes.sim.gpus"]


def test_diff_notices_order_and_a_first_item(tmp_path: Path) -> None:
    hour = "  - {id: hour, owner: f, scope: {}, resource: tokens, limit: 1, window: hour}\n"
    last = loaded(tmp_path, TEXT + hour).config
    first = loaded(tmp_path, changed("budgets:\n", f"budgets:\n{hour}")).config
    none = loaded(tmp_path, TEXT[: TEXT.index("budgets:")]).config
    assert diff(last, first) == ["budgets"]
    assert diff(none, last) == ["budgets.day", "budgets.hour"]


def test_diff_names_a_price_as_a_whole(tmp_path: Path) -> None:
    new = loaded(tmp_path, changed("output_nusd_per_mtok: 200", "output_nusd_per_mtok: 300")).config
    assert diff(loaded(tmp_path).config, new) == ["models.small.price"]
