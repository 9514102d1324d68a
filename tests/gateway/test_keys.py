"""Keys: secrets that are shown once, files that survive crashes and refuse damage."""

import fcntl
import hashlib
import json
import multiprocessing
import os
import re
import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.intent import Principal
from gateway.home import write_private
from gateway.keys import FILE_BYTES_MAX, Key, KeyFieldError, KeyFileError, KeysBusy, KeyStore, Refused

NOW = 1_760_000_000


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now_s: float = NOW

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "keys", lambda: NOW)


def made(store: KeyStore, **more: object) -> tuple[Key, str]:
    return store.create("acme", "search", "web", **more)  # type: ignore[arg-type]  # fields vary by test


def test_a_secret_identifies_the_principal_of_its_key(store: KeyStore) -> None:
    key, secret = made(store, user="ann", roles=("dev", "ops"), clearance="restricted")
    assert store.lookup(secret.encode()) is store.list()[0]
    assert store.list() == (key,)
    assert key.principal == Principal("acme", "search", "web", "ann", key.key_id, ("dev", "ops"), "restricted")


@pytest.mark.parametrize(("kind", "prefix"), [("app", "bsk-"), ("admin", "bsa-")])
def test_a_secret_is_43_random_characters_behind_its_kinds_prefix(store: KeyStore, kind: str, prefix: str) -> None:
    secrets = {made(store, kind=kind)[1] for _ in range(5)}
    assert len(secrets) == 5
    assert all(re.fullmatch(prefix + r"[A-Za-z0-9_-]{43}", secret) for secret in secrets)


def test_only_the_digest_of_a_secret_is_kept(store: KeyStore, tmp_path: Path) -> None:
    key, secret = made(store)
    written = (tmp_path / "keys").read_text()
    assert secret not in written
    assert secret[4:] not in written
    assert json.loads(written)["digest"] == hashlib.sha256(secret.encode()).hexdigest()
    assert key.digest.hex() not in repr(key)


def test_what_identifies_nobody_is_refused_by_name(store: KeyStore) -> None:
    _, secret = made(store)
    assert store.lookup(b"") is Refused.MISSING
    for other in (b"bsk-", secret[:-1].encode(), secret.encode() + b" ", secret.encode() * 100, b"\xff" * 47):
        assert store.lookup(other) is Refused.UNKNOWN


def test_a_key_of_one_kind_opens_nothing_of_the_other(store: KeyStore) -> None:
    _, app = made(store)
    admin_key, admin = made(store, kind="admin")
    assert store.lookup(app.encode(), "admin") is Refused.UNKNOWN
    assert store.lookup(admin.encode()) is Refused.UNKNOWN
    assert store.lookup(admin.encode(), "admin") == admin_key


def test_a_revoked_key_is_refused_for_good(store: KeyStore, tmp_path: Path) -> None:
    key, secret = made(store)
    revoked = store.revoke(key.key_id)
    assert revoked is not None
    assert revoked.revoked_at == NOW
    assert store.lookup(secret.encode()) is Refused.REVOKED
    assert KeyStore(tmp_path / "keys", lambda: NOW + 9).revoke(key.key_id) == revoked
    assert store.revoke("nobody") is None


def test_a_key_expires_at_its_second(tmp_path: Path) -> None:
    clock = Clock()
    store = KeyStore(tmp_path / "keys", clock)
    _, secret = made(store, expires_at=NOW + 10)
    clock.now_s = NOW + 9.99
    assert isinstance(store.lookup(secret.encode()), Key)
    clock.now_s = NOW + 10
    assert store.lookup(secret.encode()) is Refused.EXPIRED


def test_another_process_sees_a_change_when_it_reloads(store: KeyStore, tmp_path: Path) -> None:
    other = KeyStore(tmp_path / "keys", lambda: NOW)
    key, secret = made(store)
    assert other.lookup(secret.encode()) is Refused.UNKNOWN
    assert other.reload()
    assert other.lookup(secret.encode()) == key
    assert not other.reload()
    store.revoke(key.key_id)
    assert other.reload()
    assert other.lookup(secret.encode()) is Refused.REVOKED


def test_a_writer_adds_to_what_others_wrote_meanwhile(store: KeyStore, tmp_path: Path) -> None:
    other = KeyStore(tmp_path / "keys", lambda: NOW)
    first, _ = made(store)
    second, _ = made(other)
    assert [key.key_id for key in other.list()] == [first.key_id, second.key_id]


def _make_some(path: Path, count: int) -> None:
    store = KeyStore(path)
    for _ in range(count):
        store.create("acme", "search", "web")


def test_processes_that_write_at_once_lose_no_key(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_make_some, args=(tmp_path / "keys", 10)) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert len(KeyStore(tmp_path / "keys").list()) == 30
    assert sorted(os.listdir(tmp_path)) == ["keys", "keys.lock"]


def test_a_lock_that_is_never_given_back_is_named(
    store: KeyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.keys.LOCK_TIMEOUT_S", 0.05)
    with (tmp_path / "keys.lock").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(KeysBusy, match="locked by another process"):
            made(store)


def test_the_file_is_private_and_stays_so(store: KeyStore, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    key, _ = made(store)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    store.revoke(key.key_id)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_others_can_write_is_refused(store: KeyStore, tmp_path: Path) -> None:
    made(store)
    (tmp_path / "keys").chmod(0o620)
    with pytest.raises(KeyFileError, match=r"keys can be written by others \(mode 0620\)"):
        KeyStore(tmp_path / "keys")


def test_a_file_that_vanished_takes_no_key_away_and_is_named(store: KeyStore, tmp_path: Path) -> None:
    key, secret = made(store)
    (tmp_path / "keys").unlink()
    with pytest.raises(KeyFileError, match="is gone"):
        store.reload()
    assert store.lookup(secret.encode()) == key


def test_a_file_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "keys").open("wb") as file:
        file.truncate(FILE_BYTES_MAX + 1)
    (tmp_path / "keys").chmod(0o600)
    with pytest.raises(KeyFileError, match="larger than"):
        KeyStore(tmp_path / "keys")


TAMPERED = {
    "an unknown field": ({"is_root": True}, "is_root: Extra inputs are not permitted"),
    "a digest that is none": ({"digest": "abc"}, "digest: String should match pattern"),
    "a kind that is none": ({"kind": "root"}, "kind: Input should be 'app', 'admin' or 'ledger'"),
    "roles that are no list": ({"roles": "admin"}, "roles: Input should be a valid array"),
    "an end that is no second": ({"expires_at": "never"}, "expires_at: Input should be a valid integer"),
    "no organisation": ({"org": ""}, "org: String should have at least 1 character"),
    "every organisation": ({"org": "*"}, "org: must be printable"),
}


@pytest.mark.parametrize(("change", "message"), TAMPERED.values(), ids=TAMPERED)
def test_a_tampered_line_is_named_and_the_known_keys_stay(
    store: KeyStore, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "keys"
    key, secret = made(store)
    made(store)
    lines = path.read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | change)
    write_private(path, ("\n".join(lines) + "\n").encode())
    with pytest.raises(KeyFileError, match=f"keys:2: {re.escape(message)}"):
        KeyStore(path)
    with pytest.raises(KeyFileError, match="keys:2:"):
        store.reload()
    assert store.lookup(secret.encode()) == key


def test_a_line_that_comes_twice_is_named(store: KeyStore, tmp_path: Path) -> None:
    made(store)
    path = tmp_path / "keys"
    write_private(path, path.read_bytes() * 2)
    with pytest.raises(KeyFileError, match="keys:2: the key stands in an earlier line too"):
        KeyStore(path)


def test_a_file_cut_anywhere_is_refused_unless_whole_lines_are_left(store: KeyStore, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    made(store)
    made(store)
    content = path.read_bytes()
    first = content.index(b"\n") + 1
    for end in range(first + 1, len(content)):
        write_private(path, content[:end])
        with pytest.raises(KeyFileError, match="keys:2: the line is cut short"):
            KeyStore(path)


def test_a_writer_does_not_replace_a_damaged_file(store: KeyStore, tmp_path: Path) -> None:
    made(store)
    path = tmp_path / "keys"
    write_private(path, b"{}\n")
    with pytest.raises(KeyFileError, match="keys:1: key_id: Field required"):
        made(store)
    assert path.read_bytes() == b"{}\n"


@pytest.mark.parametrize(
    "fields",
    [{"user": "*"}, {"user": " ann"}, {"user": "a\nb"}, {"roles": ("",)}, {"clearance": ""}, {"user": "x" * 129}],
)
def test_a_key_with_an_impossible_field_is_not_made(store: KeyStore, tmp_path: Path, fields: dict[str, object]) -> None:
    with pytest.raises(KeyFieldError, match=next(iter(fields))):
        made(store, **fields)
    assert not (tmp_path / "keys").exists()


_texts = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=20).filter(
    lambda text: text != "*"
)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            _texts,
            _texts,
            _texts,
            _texts | st.just(""),
            st.lists(_texts, max_size=3).map(tuple),
            _texts,
            st.none() | st.integers(NOW + 1, 1 << 40),
            st.sampled_from(["app", "admin"]),
            st.booleans(),
        ),
        max_size=4,
    )
)
def test_keys_survive_the_file_whatever_their_fields(asked: list[tuple[object, ...]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = KeyStore(Path(folder, "keys"), lambda: NOW)
        secrets = []
        for *fields, is_revoked in asked:
            key, secret = store.create(*fields)  # type: ignore[arg-type]  # drawn in the order of the parameters
            secrets.append((secret, key.kind, is_revoked))
            if is_revoked:
                store.revoke(key.key_id)
        read = KeyStore(Path(folder, "keys"), lambda: NOW)
        assert read.list() == store.list()
        assert [key.principal for key in read.list()] == [key.principal for key in store.list()]
        for secret, kind, is_revoked in secrets:
            found = read.lookup(secret.encode(), kind)
            assert (found is Refused.REVOKED) if is_revoked else isinstance(found, Key)
