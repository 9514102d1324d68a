"""The key is made once, private, or lies where the environment says; any other is refused in a line."""

import pytest

from ledger.signing import BEFORE_ENV, KEY_ENV, KeyAway, KeyRefused, public_key_in, signer_of
from tests.ledger.signed_journal import SIGNER


def test_a_key_is_made_once_and_private(tmp_path):
    first, second = signer_of(tmp_path, {}), signer_of(tmp_path, {})
    path = tmp_path / "secrets" / "signing.key"
    assert first.key_id == second.key_id
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["signing.key"]


def test_a_key_outside_the_home_is_used_and_nothing_is_made_inside(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    signer_of(elsewhere, {})
    named = {KEY_ENV: str(elsewhere / "secrets" / "signing.key")}
    assert signer_of(tmp_path / "home", named).key_id == signer_of(elsewhere, {}).key_id
    assert not (tmp_path / "home").exists()


def test_a_home_whose_key_is_gone_gets_no_other_one(tmp_path):
    signer_of(tmp_path, {})
    key = tmp_path / "secrets" / "signing.key"
    key.rename(tmp_path / "elsewhere.key")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "0123456789abcdef.pub").write_bytes(SIGNER.public_pem)
    with pytest.raises(KeyAway, match="is not here: name it in BURSAR_SIGNING_KEY"):
        signer_of(tmp_path, {})
    assert not key.exists()
    assert signer_of(tmp_path, {KEY_ENV: str(tmp_path / "elsewhere.key")})


def test_the_key_that_another_takes_over_from_is_named_by_the_environment_alone(tmp_path):
    before = tmp_path / "before.pub"
    before.write_bytes(SIGNER.public_pem)
    own = signer_of(tmp_path, {})
    assert set(own.trusted) == {own.key_id}
    for environ in ({}, {KEY_ENV: str(tmp_path / "secrets" / "signing.key")}):
        assert set(signer_of(tmp_path, {**environ, BEFORE_ENV: str(before)}).trusted) == {own.key_id, SIGNER.key_id}
    before.write_bytes(b"nonsense")
    with pytest.raises(KeyRefused, match="public key"):
        signer_of(tmp_path, {BEFORE_ENV: str(before)})


def test_a_key_that_is_wrong_missing_or_open_to_others_is_refused_in_a_line(tmp_path):
    path = tmp_path / "signing.key"
    named = {KEY_ENV: str(path)}
    with pytest.raises(KeyRefused, match="cannot be read: No such file"):
        signer_of(tmp_path, named)
    for content in (b"", b"nonsense", SIGNER.public_pem, bytes(32)):
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(KeyRefused, match="holds no unencrypted Ed25519 private key") as refused:
            signer_of(tmp_path, named)
        assert "\n" not in str(refused.value)
    signer_of(tmp_path, {})
    made = tmp_path / "secrets" / "signing.key"
    made.chmod(0o640)
    with pytest.raises(KeyRefused, match="open to others"):
        signer_of(tmp_path, {})
    path.unlink()
    path.mkdir()
    with pytest.raises(KeyRefused, match="cannot be read"):
        signer_of(tmp_path, named)
    (tmp_path / "none.pub").write_bytes(b"nonsense")
    with pytest.raises(KeyRefused, match="public key"):
        public_key_in(tmp_path / "none.pub")
