"""The configuration file: each mistake is named with its line, column and field."""

from pathlib import Path

import pytest

from gateway.config_file import ConfigError, LoadedConfig, load
from gateway.config_yaml import BYTES_MAX

NOW_S = 1_760_000_000  # 2025-10-09

GOOD = """\
version: 1
policy: {url: "embedded:"}
webhooks:
  - id: ops
    url: https://ops.example/hook
    secret_env: OPS_SECRET
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
    thresholds: [0.8, 0.95]
"""


def loaded(folder: Path, text: str = GOOD, env: dict[str, str] | None = None) -> LoadedConfig:
    file = folder / "bursar.yaml"
    file.write_text(text)
    return load(file, env or {}, lambda: NOW_S)


def problems(folder: Path, text: str, env: dict[str, str] | None = None) -> list[str]:
    """The problems of a text as they are printed, without the folder."""
    with pytest.raises(ConfigError) as caught:
        loaded(folder, text, env)
    assert str(caught.value) == "\n".join(map(str, caught.value.problems))
    return [str(problem).replace(f"{folder}/", "") for problem in caught.value.problems]


def changed(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new, 1)


def added(text: str) -> str:
    """The good file with a section before its webhooks: the text begins on line 3."""
    return changed("webhooks:", f"{text}\nwebhooks:")


def test_the_good_file_loads(tmp_path: Path) -> None:
    result = loaded(tmp_path)
    assert result.config.models[0].upstream_model == "small"
    assert result.raw == GOOD
    assert result.path == tmp_path / "bursar.yaml"


SECOND_RUNTIME = "  - {id: sim, owner: platform, url: sim://}\nmodels:"
SECOND_MODEL = "  - {id: small, owner: o, runtimes: [sim], endpoints: [chat], context_tokens: 1, price: free}\nbudgets:"
SECOND_BUDGET = "  - {id: day, owner: f, scope: {}, resource: tokens, limit: 1, window: day}\n"
SECOND_HOOK = "  - {id: ops, url: https://b.example}\nruntimes:"

CASES = {
    "a duplicate runtime id": (
        changed("models:", SECOND_RUNTIME),
        "bursar.yaml:12:6 runtimes[1].id: sim is already the id of runtimes[0]",
    ),
    "a duplicate model id": (
        changed("budgets:", SECOND_MODEL),
        "bursar.yaml:22:6 models[1].id: small is already the id of models[0]",
    ),
    "a duplicate budget id": (
        GOOD + SECOND_BUDGET,
        "bursar.yaml:30:6 budgets[1].id: day is already the id of budgets[0]",
    ),
    "a duplicate webhook id": (
        changed("runtimes:", SECOND_HOOK),
        "bursar.yaml:7:6 webhooks[1].id: ops is already the id of webhooks[0]",
    ),
    "a model on an unknown runtime": (
        changed("runtimes: [sim]", "runtimes: [sim, smi]"),
        "bursar.yaml:15:21 models[0].runtimes[1]: no runtime is called smi; did you mean sim?",
    ),
    "a runtime named twice by a model": (
        changed("runtimes: [sim]", "runtimes: [sim, sim]"),
        "bursar.yaml:15:5 models[0].runtimes: must not name anything twice",
    ),
    "a model without a price": (
        GOOD[: GOOD.index("    price:")] + GOOD[GOOD.index("budgets:") :],
        (
            "bursar.yaml:13:5 models[0].price: a model without a price is refused: list dated prices, "
            "or write `price: free`"
        ),
    ),
    "a price that is neither free nor dated": (
        changed("price:\n      - valid_from: 2025-01-01\n", "price:\n        valid_from: 2025-01-01\n"),
        "bursar.yaml:18:5 models[0].price: must be `free` or a list of dated prices",
    ),
    "a price of another word": (
        GOOD[: GOOD.index("    price:")] + "    price: gratis\n" + GOOD[GOOD.index("budgets:") :],
        "bursar.yaml:18:5 models[0].price: input should be 'free'",
    ),
    "prices out of order": (
        changed(
            "budgets:",
            "      - {valid_from: 2024-01-01, input_nusd_per_mtok: 1, output_nusd_per_mtok: 1}\nbudgets:",
        ),
        "bursar.yaml:18:5 models[0].price: must be sorted by valid_from: 2024-01-01 follows 2025-01-01",
    ),
    "no price valid today": (
        changed("2025-01-01", "2025-10-10"),
        "bursar.yaml:19:9 models[0].price[0].valid_from: no price is valid today: the first begins on 2025-10-10",
    ),
    "a day that does not exist": (
        changed("2025-01-01", "2025-02-30"),
        "bursar.yaml:19:21 models[0].price[0].valid_from: is not a value: day is out of range for month",
    ),
    "a negative price": (
        changed("input_nusd_per_mtok: 100", "input_nusd_per_mtok: -1"),
        "bursar.yaml:20:9 models[0].price[0].input_nusd_per_mtok: input should be greater than or equal to 0",
    ),
    "more output than context": (
        changed("    price:", "    max_output_tokens: 5000\n    price:"),
        "bursar.yaml:18:5 models[0].max_output_tokens: must not exceed context_tokens",
    ),
    "thresholds that do not ascend": (
        changed("[0.8, 0.95]", "[0.95, 0.8]"),
        "bursar.yaml:29:5 budgets[0].thresholds: must ascend, above 0 and up to 1",
    ),
    "a threshold of nothing": (
        changed("[0.8, 0.95]", "[0, 0.8]"),
        "bursar.yaml:29:5 budgets[0].thresholds: must ascend, above 0 and up to 1",
    ),
    "a threshold above one": (
        changed("[0.8, 0.95]", "[0.8, 1.2]"),
        "bursar.yaml:29:23 budgets[0].thresholds[1]: input should be less than or equal to 1",
    ),
    "three thresholds": (
        changed("[0.8, 0.95]", "[0.7, 0.8, 0.9]"),
        (
            "bursar.yaml:29:5 budgets[0].thresholds: must be two ratios: where the band turns warn, "
            "and where it turns critical"
        ),
    ),
    "a limit of zero": (
        changed("limit: 1000", "limit: 0"),
        "bursar.yaml:27:5 budgets[0].limit: input should be greater than 0",
    ),
    "a fractional limit": (
        changed("limit: 1000", "limit: 1.0"),
        "bursar.yaml:27:5 budgets[0].limit: must be a whole number",
    ),
    "a limit of true": (
        changed("limit: 1000", "limit: true"),
        "bursar.yaml:27:5 budgets[0].limit: must be a whole number",
    ),
    "an unknown window": (
        changed("window: day", "window: week"),
        (
            "bursar.yaml:28:5 budgets[0].window: window 'week' is none of minute, hour, day, month, total, "
            "rolling:<n><s|m|h|d>"
        ),
    ),
    "a rolling window shorter than a minute": (
        changed("window: day", "window: rolling:30s"),
        (
            "bursar.yaml:28:5 budgets[0].window: a rolling window needs a duration divisible into 60 whole seconds, "
            "not 'rolling:30s'"
        ),
    ),
    "a rolling window of uneven buckets": (
        changed("window: day", "window: rolling:90s"),
        (
            "bursar.yaml:28:5 budgets[0].window: a rolling window needs a duration divisible into 60 whole seconds, "
            "not 'rolling:90s'"
        ),
    ),
    "a rolling window of years": (
        changed("window: day", "window: rolling:400d"),
        "bursar.yaml:28:5 budgets[0].window: a rolling window may last 366 days at most",
    ),
    "concurrency in a window": (
        changed("resource: tokens", "resource: concurrency"),
        "bursar.yaml:28:5 budgets[0].window: concurrency counts what is open now and has no windows: use total",
    ),
    "an unknown resource": (
        changed("resource: tokens", "resource: money"),
        (
            "bursar.yaml:26:5 budgets[0].resource: input should be 'tokens', 'input_tokens', 'output_tokens', "
            "'list_cost_nusd', 'gpu_cost_nusd', 'gpu_us', 'kv_block_us', 'energy_uj', 'requests' or 'concurrency'"
        ),
    ),
    "neither soft nor hard": (
        changed("window: day", "window: day\n    mode: firm"),
        "bursar.yaml:29:5 budgets[0].mode: input should be 'hard' or 'soft'",
    ),
    "an unknown dimension": (
        changed("scope: {org: acme,", "scope: {orgs: acme,"),
        "bursar.yaml:25:13 budgets[0].scope.orgs: is not a field; did you mean org?",
    ),
    "a scope over an unknown model": (
        changed('team: "*"', "model: smal"),
        "bursar.yaml:25:24 budgets[0].scope.model: no model is called smal; did you mean small?",
    ),
    "a scope over an unknown runtime": (
        changed('team: "*"', "runtime: gpu"),
        "bursar.yaml:25:24 budgets[0].scope.runtime: no runtime is called gpu",
    ),
    "several workers on a book in memory": (
        added("listen: {workers: 2}"),
        "bursar.yaml:3:10 listen.workers: a book in memory:// serves one worker only",
    ),
    "one port for both planes": (
        added("listen: {port: 9000, admin_port: 9000}"),
        "bursar.yaml:3:22 listen.admin_port: is the port that applications use: the admin plane needs its own",
    ),
    "a port that is none": (
        added("listen: {port: 65536}"),
        "bursar.yaml:3:10 listen.port: input should be less than or equal to 65535",
    ),
    "a book in Redis": (
        added('book: {url: "redis://:hunter2@db:6379/0"}'),
        "bursar.yaml:3:8 book.url: has a password in it: put that into the environment variable BURSAR_REDIS_PASSWORD",
    ),
    "another book": (
        added("book: {url: file://x}"),
        "bursar.yaml:3:8 book.url: must be memory://, redis://<host>:<port>/<database> or rediss://…",
    ),
    "an OPA server with a password": (
        changed("embedded:", "http://me:secret@opa:8181"),
        "bursar.yaml:2:10 policy.url: has a password in it: name the variable that holds a token in token_env",
    ),
    "a policy folder that is not there": (
        changed("embedded:", "embedded:rules/"),
        (
            "bursar.yaml:2:10 policy.url: there is no folder rules/ here; "
            "embedded: alone is the bundle shipped with Bursar"
        ),
    ),
    "a tokenizer that is not there": (
        changed("    price:", "    tokenizer: none.json\n    price:"),
        "bursar.yaml:18:5 models[0].tokenizer: there is no file none.json",
    ),
    "a ClickHouse server": (
        added("ledger: {url: clickhouse://db:8123/x/y}"),
        "bursar.yaml:3:10 ledger.url: clickhouse://db:8123/x/y: write clickhouse://host:8123/database or https://host:8443/database",
    ),
    "a ledger that is the home itself": (
        added("ledger: {url: chdb://.}"),
        "bursar.yaml:3:10 ledger.url: must be chdb://<folder in the home>, chdb:///<absolute folder> or clickhouse://<host>:<port>/<db>",
    ),
    "a journal without room for two segments": (
        added("ledger: {journal_bytes_max: 100 MiB}"),
        (
            "bursar.yaml:3:1 ledger.segment_bytes: two segments must fit into journal_bytes_max: one being written and "
            "one in reserve"
        ),
    ),
    "a sampling rate that is not a number": (
        added("telemetry: {trace_sample: .nan}"),
        "bursar.yaml:3:13 telemetry.trace_sample: input should be a finite number",
    ),
    "a timeout that never ends": (
        added("limits: {body_timeout_s: .inf}"),
        "bursar.yaml:3:10 limits.body_timeout_s: input should be a finite number",
    ),
    "an unknown field": (
        added("limits: {body_bytes_mx: 1}"),
        "bursar.yaml:3:10 limits.body_bytes_mx: is not a field; did you mean body_bytes_max?",
    ),
    "an unknown section": (
        added("budget: []"),
        "bursar.yaml:3:1 budget: is not a field; did you mean budgets?",
    ),
    "an unknown price field": (
        changed("output_nusd_per_mtok: 200", "output_nusd_per_mtok: 200\n        cached_nusd_per_mtok: 1"),
        (
            "bursar.yaml:22:9 models[0].price[0].cached_nusd_per_mtok: is not a field; did you mean "
            "cached_input_nusd_per_mtok?"
        ),
    ),
    "an inline secret": (
        changed("    gpus: 2", "    api_key: sk-12345"),
        (
            "bursar.yaml:11:5 runtimes[0].api_key: secrets never stand in the file: name an environment variable "
            "(…_env) or a file (…_file); did you mean api_key_env?"
        ),
    ),
    "a secret where its variable's name belongs": (
        changed("OPS_SECRET", "sk-12345"),
        "bursar.yaml:6:5 webhooks[0].secret_env: string should match pattern '^[A-Za-z_][A-Za-z0-9_]{0,127}$'",
    ),
    "credentials in a runtime's URL": (
        changed("sim://", "http://me:hunter2@gpu:8000"),
        "bursar.yaml:10:5 runtimes[0].url: must not hold credentials: they come from environment variables or files",
    ),
    "a token in a webhook's URL": (
        changed("https://ops.example/hook", "https://ops.example/hook?token=hunter2"),
        "bursar.yaml:5:5 webhooks[0].url: must not hold credentials: they come from environment variables or files",
    ),
    "two places for one key": (
        changed("    gpus: 2", "    api_key_env: A\n    api_key_file: b"),
        "bursar.yaml:12:5 runtimes[0].api_key_file: name either api_key_env or api_key_file, not both",
    ),
    "a runtime of another kind": (
        changed("sim://", "grpc://gpu"),
        "bursar.yaml:10:5 runtimes[0].url: must be http://host or https://host",
    ),
    "simulator knobs on a real runtime": (
        changed("url: sim://\n    gpus: 2", "url: http://gpu:8000\n    sim: {max_num_seqs: 4}"),
        "bursar.yaml:11:5 runtimes[0].sim: belongs to a runtime whose url is sim://",
    ),
    "simulator knobs that do not fit together": (
        changed("    gpus: 2", "    sim: {num_blocks: 2}"),
        "bursar.yaml:11:5 runtimes[0].sim: num_blocks x block_size must hold one request of max_model_len tokens",
    ),
    "another version": (changed("version: 1", "version: 2"), "bursar.yaml:1:1 version: input should be 1"),
}


@pytest.mark.parametrize(("text", "problem"), CASES.values(), ids=CASES)
def test_a_mistake_is_named_with_its_line_and_field(tmp_path: Path, text: str, problem: str) -> None:
    assert problem in problems(tmp_path, text)


@pytest.mark.parametrize("name", ["a book in Redis", "an inline secret", "credentials in a runtime's URL"])
def test_a_problem_never_repeats_a_secret(tmp_path: Path, name: str) -> None:
    told = "\n".join(problems(tmp_path, CASES[name][0]))
    assert "hunter2" not in told
    assert "sk-12345" not in told


def test_every_wrong_value_is_reported_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = changed("limit: 1000", "limit: 0").replace("gpus: 2", "gpus: none").replace("version: 1", "version: x")
    assert [problem.split()[0] for problem in problems(tmp_path, text)] == [
        "bursar.yaml:1:1",
        "bursar.yaml:11:5",
        "bursar.yaml:27:5",
    ]


def test_a_list_is_not_called_short_because_its_items_are_wrong(tmp_path: Path) -> None:
    assert problems(tmp_path, changed("gpus: 2", "gpus: none")) == [
        "bursar.yaml:11:5 runtimes[0].gpus: input should be a valid integer, unable to parse string as an integer"
    ]
    empty = GOOD[: GOOD.index("runtimes:")] + "runtimes: []\n" + GOOD[GOOD.index("models:") :]
    assert problems(tmp_path, empty) == [
        "bursar.yaml:7:1 runtimes: tuple should have at least 1 item after validation, not 0"
    ]


def test_what_is_required_is_missed_where_it_belongs(tmp_path: Path) -> None:
    assert problems(tmp_path, "{}") == [
        "bursar.yaml:1:1 models: is required",
        "bursar.yaml:1:1 runtimes: is required",
        "bursar.yaml:1:1 version: is required",
    ]
    assert problems(tmp_path, changed("    owner: finance\n", "")) == ["bursar.yaml:23:5 budgets[0].owner: is required"]


def test_a_missing_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml: cannot be read: No such file or directory$"):
        load(tmp_path / "gone.yaml", {})


def test_a_file_over_one_mebibyte_is_refused_and_one_of_that_size_is_not(tmp_path: Path) -> None:
    filler = "# " + "x" * (BYTES_MAX - len(GOOD) - 3) + "\n"
    assert loaded(tmp_path, GOOD + filler).config.version == 1
    assert problems(tmp_path, GOOD + filler + "#") == ["bursar.yaml: is larger than 1048576 bytes"]


def test_sizes_may_be_written_with_their_unit(tmp_path: Path) -> None:
    result = loaded(tmp_path, added("limits: {body_bytes_max: 2 MiB, header_bytes_max: 16KiB, url_bytes_max: 512}"))
    limits = result.config.limits
    assert (limits.body_bytes_max, limits.header_bytes_max, limits.url_bytes_max) == (2 << 20, 16 << 10, 512)


def test_relative_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "rego").mkdir()
    (tmp_path / "tokenizer.json").write_text("{}")
    text = changed("embedded:", "embedded:rego/").replace("    price:", "    tokenizer: tokenizer.json\n    price:")
    assert loaded(tmp_path, text).config.policy.folder == "rego/"
