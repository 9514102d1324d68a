"""The demo's configuration: valid as shipped, wherever it is copied to."""

import shutil
from pathlib import Path

from gateway.config_file import load

NOW_S = 1_760_000_000
DEMO = Path(__file__).parents[2] / "gateway" / "demo.yaml"


def test_the_demo_is_valid_and_has_what_it_promises(tmp_path: Path) -> None:
    copy = shutil.copy(DEMO, tmp_path / "bursar.yaml")
    config = load(copy, {}, lambda: NOW_S).config
    assert [model.id for model in config.models] == ["sim-large", "sim-small", "sim-embed"]
    assert all(config.prices_at(model.id, NOW_S).input_nusd_per_mtok > 0 for model in config.models)
    assert len(config.budgets) == 5
    assert {runtime.url for runtime in config.runtimes} == {"sim://"}
