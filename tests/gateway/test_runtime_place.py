"""Where the commands over runtimes find them: in the file named, or where there is none, in that of a gateway."""

from pathlib import Path

import pytest
import yaml

from gateway.cli.runtime_place import NoRuntime, place_of, places
from gateway.config_file import ConfigError
from gateway.home import Home
from tests.gateway.deployment import deploy


def test_without_a_file_they_are_those_of_the_gateway_that_runs(tmp_path: Path) -> None:
    (tmp_path / "running").mkdir()
    config, home = deploy(tmp_path / "running", "http://127.0.0.1:9"), Home(tmp_path / "home")
    absent = tmp_path / "bursar.yaml"
    with pytest.raises(ConfigError, match=r"bursar\.yaml: cannot be read"):
        places(home.path, absent)
    home.write_run("gateway", {"config": str(config)})
    assert places(home.path, absent) == places(home.path, config)
    with pytest.raises(NoRuntime, match=f"there is no runtime nobody in {config}: it has "):
        place_of("nobody", home.path, absent)


def test_a_file_that_is_there_goes_before_that_of_the_gateway(tmp_path: Path) -> None:
    for name in ("running", "named"):
        (tmp_path / name).mkdir()
    named, home = deploy(tmp_path / "named", "http://127.0.0.1:8"), Home(tmp_path / "home")
    home.write_run("gateway", {"config": str(deploy(tmp_path / "running", "http://127.0.0.1:9"))})
    assert "http://127.0.0.1:8" in {place.url for place in places(home.path, named)}


def test_a_key_that_cannot_be_read_is_missed_only_where_it_is_used(tmp_path: Path) -> None:
    config = deploy(tmp_path, "http://127.0.0.1:8")
    document = yaml.safe_load(config.read_text(encoding="utf-8"))
    document["runtimes"][0]["api_key_file"] = "absent.key"
    config.write_text(yaml.safe_dump(document), encoding="utf-8")
    place = places(tmp_path / "home", config)[0]
    with pytest.raises(NoRuntime, match=f"the key of runtime {place.id} cannot be read"):
        place.authorization()
