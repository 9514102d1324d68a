"""Where the commands over runtimes find them: in the file named, or where there is none, in that of a gateway."""

from pathlib import Path

import pytest

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
