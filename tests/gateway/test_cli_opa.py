"""`bursar policy status` and `push` say what is wrong with an address, and end as for any wrong usage."""

import sys

import pytest

from gateway.cli import main


@pytest.mark.parametrize("arguments", [("status",), ("push", "--bundle", "rego")])
def test_what_is_no_address_of_an_opa_is_wrong_usage(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bursar", "policy", *arguments, "--opa", "ftp://opa"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "is not the address of an OPA" in capsys.readouterr().err
