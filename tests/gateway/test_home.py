"""The home: private directories, files that are whole or absent, secrets made once."""

import json
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gateway.home import Home, HomeError, write_private


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_every_directory_is_made_private_whatever_the_umask(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        home = Home(tmp_path / "deep" / "home")
    finally:
        os.umask(previous)
    for directory in (home.path, home.journal, home.ledger, home.checkpoints, home.run, home.logs, home.secrets):
        assert mode(directory) == 0o700
    assert home.keys == home.path / "keys"


def test_a_directory_that_was_open_is_closed(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir(mode=0o755)
    assert mode(Home(tmp_path).secrets) == 0o700


def test_what_only_reads_makes_no_home_and_takes_no_other_folder_for_one(tmp_path: Path) -> None:
    (tmp_path / "ledger").mkdir()
    for folder in (tmp_path, tmp_path / "typo"):
        with pytest.raises(HomeError, match=f"there is no home at {folder}"):
            Home.at(folder)
    assert os.listdir(tmp_path) == ["ledger"]
    assert Home.at(Home(tmp_path / "home").path).path == tmp_path / "home"


def test_a_secret_is_made_once_and_kept(tmp_path: Path) -> None:
    secret = Home(tmp_path).secret("cache_salt")
    assert len(secret) == 32
    assert Home(tmp_path).secret("cache_salt") == secret
    assert Home(tmp_path).secret("pseudonym") != secret
    assert mode(tmp_path / "secrets" / "cache_salt.key") == 0o600
    assert sorted(os.listdir(tmp_path / "secrets")) == ["cache_salt.key", "pseudonym.key"]


def test_a_secret_made_by_many_at_once_is_the_same_for_all(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        secrets = set(pool.map(lambda _: home.secret("salt"), range(32)))
    assert len(secrets) == 1


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 33])
def test_a_damaged_secret_is_not_used(tmp_path: Path, content: bytes) -> None:
    home = Home(tmp_path)
    home.secret("salt")
    write_private(home.secrets / "salt.key", content)
    with pytest.raises(HomeError, match=r"salt\.key must hold 32 bytes"):
        home.secret("salt")


def test_a_secret_that_others_can_read_is_not_used(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.secret("salt")
    (home.secrets / "salt.key").chmod(0o640)
    with pytest.raises(HomeError, match=r"open to others \(mode 0640\)"):
        home.secret("salt")


def test_a_token_is_url_safe_text_that_its_file_holds(tmp_path: Path) -> None:
    home = Home(tmp_path)
    token = home.token("ledger")
    assert len(token) == 43
    assert token.replace("-", "").replace("_", "").isalnum()
    assert home.token_path("ledger").read_text() == token
    assert mode(home.token_path("ledger")) == 0o600


def test_the_admin_secret_is_read_once_it_was_made_and_only_while_private(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with pytest.raises(FileNotFoundError):
        home.admin_secret()
    write_private(home.admin_secret_path, b"bsa-x")
    assert home.admin_secret() == "bsa-x"
    home.admin_secret_path.chmod(0o644)
    with pytest.raises(HomeError, match="open to others"):
        home.admin_secret()


@pytest.mark.parametrize("name", ["", "..", "a/b", "A", "a.b", "x" * 65])
def test_a_name_cannot_lead_out_of_the_home(tmp_path: Path, name: str) -> None:
    home = Home(tmp_path)
    for use in (home.secret, home.token, home.read_run, home.remove_run):
        with pytest.raises(ValueError, match="is not a name"):
            use(name)


def test_a_process_says_how_it_is_reached_and_is_forgotten(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert home.read_run("gateway") is None
    assert not home.alive("gateway")
    home.write_run("gateway", {"port": 8080})
    facts = home.read_run("gateway")
    assert facts is not None
    assert (facts["pid"], facts["port"]) == (os.getpid(), 8080)
    assert home.alive("gateway")
    assert mode(home.run / "gateway.json") == 0o600
    home.remove_run("gateway")
    home.remove_run("gateway")
    assert home.read_run("gateway") is None


def test_a_process_that_ended_is_not_alive(tmp_path: Path) -> None:
    home = Home(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    home.write_run("ledger", {"pid": process.pid})
    assert home.alive("ledger")
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not home.alive("ledger"), "a zombie serves nobody"
    process.communicate()
    assert not home.alive("ledger")


def test_a_pid_used_again_by_another_process_is_not_alive(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.write_run("gateway", {})
    facts = home.read_run("gateway")
    assert facts is not None
    write_private(home.run_file("gateway"), json.dumps({**facts, "started": facts["started"] - 1}).encode())
    assert not home.alive("gateway")


def test_a_run_file_written_by_another_program_needs_only_a_pid(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.run_file("ledger").write_text(json.dumps({"pid": os.getpid(), "port": 1}))
    assert home.alive("ledger")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"pid": "1"}', '{"pid": true}', '{"pid": -1}'])
def test_a_damaged_run_file_is_named(tmp_path: Path, content: str) -> None:
    home = Home(tmp_path)
    home.run_file("gateway").write_text(content)
    with pytest.raises(HomeError, match=r"gateway\.json"):
        home.alive("gateway")


def test_a_file_is_replaced_at_once_and_leaves_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_private(path, b"one")
    held = path.open("rb")
    write_private(path, b"two")
    with held:
        assert held.read() == b"one"
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["f"]
    assert mode(path) == 0o600


def test_a_failed_replacement_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.mkdir()
    with pytest.raises(OSError, match="directory"):
        write_private(path, b"two")
    assert os.listdir(tmp_path) == ["f"]


def test_an_embedded_runtime_tells_into_its_home(tmp_path: Path) -> None:
    assert Home(tmp_path / "home").telemetry("sim-a") == tmp_path / "home" / "telemetry" / "sim-a"
