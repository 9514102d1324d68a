"""The benchmark of an OPA's decisions asks a real one, or says that there is none."""

import pytest

from bench import opa_rows
from bench.errors import MeasurementError
from bench.opa_rows import misses_of
from tests import opa_server


def test_a_machine_without_opa_gives_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise opa_server.OpaMissing("there is none")

    monkeypatch.setattr(opa_rows.opa_server, "binary", missing)
    with pytest.raises(MeasurementError, match="there is none"):
        misses_of(1, 1, 1)
