"""`bursar policy status` and `push` say what is wrong with an address, and end as for any wrong usage."""

import asyncio
import sys
from pathlib import Path

import pytest

from gateway.cli import main
from tests.fake_opa import FakeOpa, answers
from tests.gateway.test_cli_commands import NO, ran


@pytest.mark.parametrize("arguments", [("status",), ("push", "--bundle", "rego")])
def test_what_is_no_address_of_an_opa_is_wrong_usage(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bursar", "policy", *arguments, "--opa", "ftp://opa"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "is not the address of an OPA" in capsys.readouterr().err


async def test_an_opa_that_wants_a_token_is_said_to_have_got_none(tmp_path: Path) -> None:
    async with FakeOpa(answers({"code": "unauthorized"}, 401)) as fake:
        done = await asyncio.to_thread(ran, NO, "policy", "status", "--opa", fake.url, home=tmp_path)
    unset = "its token is taken from BURSAR_OPA_TOKEN, which is not set (policy.token_env names another)"
    assert done.stderr == f"bursar: OPA answered 401: unauthorized; {unset}\n"
