"""Overrides: the environment wins over the file, and is named when it is at fault."""

from pathlib import Path

import pytest

from gateway.config import Config
from gateway.config_file import ConfigError, load

NOW_S = 1_760_000_000
TEXT = """\
version: 1
env: {name: dev, freeze: false}
policy: {url: "embedded:"}
listen: {port: 9000, admin_port: 9001}
runtimes:
  - {id: sim, owner: o, url: "sim://"}
  - {id: gpu, owner: o, url: "http://gpu:8000"}
models:
  - {id: m, owner: o, runtimes: [sim], endpoints: [chat], context_tokens: 4096, price: free}
"""


def under(folder: Path, **env: str) -> Config:
    file = folder / "bursar.yaml"
    file.write_text(TEXT)
    return load(file, env, lambda: NOW_S).config


def problems(folder: Path, **env: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        under(folder, **env)
    return [str(problem) for problem in caught.value.problems]


def test_one_value_is_overridden_and_its_neighbours_stay(tmp_path: Path) -> None:
    listen = under(tmp_path, BURSAR_LISTEN__PORT="0").listen
    assert (listen.port, listen.admin_port) == (0, 9001)


def test_values_of_every_kind_are_read(tmp_path: Path) -> None:
    config = under(
        tmp_path,
        BURSAR_ENV__NAME="123",
        BURSAR_ENV__FREEZE="true",
        BURSAR_TELEMETRY__TRACE_SAMPLE="0.5",
        BURSAR_LIMITS__BODY_BYTES_MAX="1 MiB",
    )
    assert (config.env.name, config.env.freeze) == ("123", True)
    assert config.telemetry.trace_sample == 0.5
    assert config.limits.body_bytes_max == 1 << 20


def test_null_empties_a_value(tmp_path: Path) -> None:
    assert under(tmp_path, BURSAR_TELEMETRY__OTLP_ENDPOINT="null").telemetry.otlp_endpoint is None


def test_an_item_of_a_list_is_overridden_by_its_place(tmp_path: Path) -> None:
    config = under(tmp_path, BURSAR_RUNTIMES__1__URL="http://other:8000", BURSAR_RUNTIMES__0__GPUS="4")
    assert [(runtime.url, runtime.gpus) for runtime in config.runtimes] == [("sim://", 4), ("http://other:8000", 1)]


def test_a_section_is_overridden_in_json(tmp_path: Path) -> None:
    budget = '[{"id": "b", "owner": "o", "scope": {}, "resource": "tokens", "limit": 5, "window": "day"}]'
    config = under(tmp_path, BURSAR_BUDGETS=budget, BURSAR_ENV='{"name": "prod"}')
    assert [each.limit for each in config.budgets] == [5]
    assert (config.env.name, config.env.freeze) == ("prod", False)


def test_names_are_read_in_any_case(tmp_path: Path) -> None:
    assert under(tmp_path, bursar_listen__port="7").listen.port == 7


def test_variables_that_are_no_values_are_left_alone(tmp_path: Path) -> None:
    config = under(tmp_path, BURSAR_SIGNING_KEY="x", BURSAR_HOME="h", LISTEN__PORT="1", BURSAR_PORT_8080_TCP="y")
    assert config == under(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("BURSAR_LISTEN__PORT", "70000", "listen.port: input should be less than or equal to 65535"),
        ("BURSAR_LISTEN__PROT", "1", "listen.prot: is not a field; did you mean port?"),
        ("BURSAR_LISTEN", '{"workers": 2}', "listen.workers: a book in memory:// serves one worker only"),
        ("BURSAR_RUNTIMES__1__URL", "ftp://x", "runtimes[1].url: must be http://host or https://host"),
        ("BURSAR_MODELS__0__RUNTIMES", "sim", "models[0].runtimes: input should be a valid tuple"),
        ("BURSAR_LISTEN__PORT__HIGH", "1", "listen.port: input should be a valid integer"),
    ],
)
def test_a_wrong_override_names_the_variable_and_no_line(tmp_path: Path, name: str, value: str, problem: str) -> None:
    assert problems(tmp_path, **{name: value}) == [f"{name} {problem}"]


@pytest.mark.parametrize(
    ("env", "problem"),
    [
        ({"BURSAR_ENV": "prod"}, "BURSAR_ENV: is not JSON"),
        (
            {"BURSAR_LISTN__PORT": "1"},
            "BURSAR_LISTN__PORT: names no section of the configuration; did you mean listen?",
        ),
        ({"BURSAR_RUNTIMES__2__URL": "x"}, "BURSAR_RUNTIMES__2__…: the file has no such item: 2 are counted from 0"),
        (
            {"BURSAR_BUDGETS": "[]", "BURSAR_BUDGETS__0__LIMIT": "1"},
            "BURSAR_BUDGETS: sets all of the section, so nothing below it can be set too",
        ),
    ],
)
def test_an_override_that_cannot_be_applied_is_refused(tmp_path: Path, env: dict[str, str], problem: str) -> None:
    assert problems(tmp_path, **env) == [problem]
