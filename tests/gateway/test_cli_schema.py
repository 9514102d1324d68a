"""`bursar ledger schema` prints what a cluster needs, and asks for its name."""

import pytest
from typer.testing import CliRunner

from gateway.cli import app
from ledger.cluster import BadCluster


def test_the_schema_of_a_cluster_is_printed_as_one_script() -> None:
    done = CliRunner().invoke(app, ["ledger", "schema", "--cluster", "main"])
    assert done.exit_code == 0
    assert done.stdout.startswith("-- Bursar's ledger on the cluster main")
    assert "CREATE TABLE IF NOT EXISTS usage_local ON CLUSTER 'main'" in done.stdout
    assert done.stdout.rstrip().endswith(";")


def test_without_a_name_or_with_none_it_is_wrong_usage() -> None:
    assert CliRunner().invoke(app, ["ledger", "schema"]).exit_code == 2
    with pytest.raises(BadCluster):
        CliRunner().invoke(app, ["ledger", "schema", "--cluster", "a'b"], catch_exceptions=False)
