"""What an auditor asks of a home: it is proved, or the answer is no, with the first thing that is wrong."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path

import pytest
from pydantic import ValidationError

from gateway.cli import main
from gateway.config import Ledger
from ledger import verifier
from ledger.checkpoints import CheckpointLog
from ledger.client import open_ledger, running
from ledger.segments import segment_paths
from ledger.signing import Signer, signer_of
from ledger.store import Store
from ledger.verifier import public_key_of, verified_consistency, verified_proof
from tests.ledger.signed_journal import SignedJournal, signed

DONE, NO, WRONG_USAGE = 0, 1, 2
ROWS = 900
WRITER = "gateway-0"


@dataclass(frozen=True)
class Done:
    """What a command printed."""

    stdout: str
    stderr: str


def ran(code: int, home: Path, *arguments: str) -> Done:
    """Run `bursar ledger …` in this process and expect its exit code."""
    out, err = TextIOWrapper(BytesIO(), encoding="utf-8", write_through=True), StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["bursar", "ledger", *arguments])
        patch.setenv("BURSAR_HOME", str(home))
        patch.setenv("BURSAR_CONFIG", str(home / "none.yaml"))
        with pytest.raises(SystemExit) as ended:
            main()
    out.seek(0)
    done = Done(out.read(), err.getvalue())
    assert int(ended.value.code or 0) == code, (arguments, done)
    return done


def url(home: Path) -> str:
    return f"chdb://{home}/ledger"


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose journal of several segments is shipped and signed; no ledger process runs on it."""
    home = tmp_path_factory.mktemp("audited") / "home"
    with open_ledger(home, url(home)) as client:
        SignedJournal.write(
            home / "journal" / WRITER,
            ROWS,
            segment_bytes=1 << 16,
            written=lambda number: client.flush() if number % (ROWS // 3) == 0 else None,
        )
        client.flush()
    assert len(segment_paths(home / "journal" / WRITER)) > 2
    return home


@pytest.fixture
def home(audited: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    return Path(shutil.copytree(audited, tmp_path / "home", symlinks=True))


@pytest.fixture(scope="module")
def live(audited: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Another copy, on which a ledger process runs."""
    home = Path(shutil.copytree(audited, tmp_path_factory.mktemp("live") / "home", symlinks=True))
    with open_ledger(home, url(home)):
        yield home


def journal_of(home: Path) -> SignedJournal:
    return SignedJournal(home / "journal" / WRITER)


def edit(home: Path, statement: str) -> None:
    """Do to the store what only whoever can write the home can do."""
    store = Store(url(home))
    store.execute(f"{statement} SETTINGS mutations_sync = 2")
    store.close()


def public_key(home: Path) -> bytes:
    return public_key_of(ran(DONE, home, "checkpoint", "--key").stdout.encode())


def test_a_home_is_proved_without_opening_the_store(home: Path) -> None:
    shutil.rmtree(home / "ledger")
    said = ran(DONE, home, "verify").stdout
    last = len(journal_of(home).sha256s)
    assert f"records 1 to {last} are whole, in order" in said
    assert f"signed: all up to record {last}; " in said
    assert f"usage rows: {{'ok': {ROWS}}}" in said
    assert f"input_tokens: {10 * ROWS}" in said
    shown = json.loads(ran(DONE, home, "verify", "--json").stdout)
    assert shown["failed"] == {}
    assert shown["verified"][WRITER]["org_seqs"] == {"acme": ROWS // 2, "globex": ROWS // 2}
    assert shown["verified"][WRITER]["charges"] == [["day", "acme", 1_772_236_800, "tokens", 10 * ROWS]]


def test_the_store_is_compared_when_it_is_asked_for(live: Path) -> None:
    said = ran(DONE, live, "verify", "--store").stdout
    last = len(journal_of(live).sha256s)
    assert f"the store has the same records up to {last}" in said
    assert "the store's usage adds up to the same rows, amounts and charges" in said


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("ALTER TABLE events UPDATE sha256 = repeat('0', 64) WHERE seq = 77", "the store has another record 77"),
        ("ALTER TABLE usage UPDATE list_cost_nusd = 0 WHERE seq = 77", "amounts of list_cost_nusd"),
        ("ALTER TABLE usage UPDATE status = 'refused' WHERE seq = 77", "the store's rows of"),
        ("ALTER TABLE usage UPDATE charges = [] WHERE seq = 77", "the store's charges of"),
    ],
)
def test_a_store_that_was_edited_is_not_proved(home: Path, statement: str, why: str) -> None:
    edit(home, statement)
    said = ran(NO, home, "verify", "--store").stderr
    assert why in said


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("ALTER TABLE events UPDATE sha256 = repeat('0', 64) WHERE seq = 77", "than were signed in records 1 to 256"),
        ("ALTER TABLE events DELETE WHERE seq = 77", "the store has record 77 of gateway-0 not at all"),
    ],
)
def test_a_store_that_alone_has_a_record_is_held_to_the_tree(home: Path, statement: str, why: str) -> None:
    """What the journal still has the store is mended from."""
    segment_paths(home / "journal" / WRITER)[0].unlink()
    edit(home, statement)
    assert why in ran(NO, home, "verify", "--store").stderr


def test_a_changed_record_is_not_proved(home: Path) -> None:
    journal = journal_of(home)
    path, at, end = journal.places[300]
    content = bytearray(path.read_bytes())
    content[(at + end) // 2] ^= 1
    path.write_bytes(content)
    for options in ((), ("--store",)):
        assert f"{path.name}: record 301 is not what was written" in ran(NO, home, "verify", *options).stderr


def test_a_home_without_checkpoints_is_not_proved(home: Path) -> None:
    (home / "checkpoints" / f"{WRITER}.jsonl").unlink()
    assert "nothing is signed" in ran(NO, home, "verify").stderr
    assert "no checkpoint was signed" in ran(NO, home, "checkpoint").stderr


def test_a_journal_that_is_gone_does_not_pass_in_silence(home: Path, tmp_path: Path) -> None:
    ran(DONE, home, "checkpoint", "--to", str(tmp_path / "out"))
    shutil.rmtree(home / "journal" / WRITER)
    assert "holds no journal segment" in ran(NO, home, "verify").stderr
    (home / "checkpoints" / f"{WRITER}.jsonl").unlink()
    exported = tmp_path / "out" / f"{WRITER}.jsonl"
    assert "holds no journal segment" in ran(NO, home, "verify", "--checkpoint", str(exported)).stderr
    exported.write_bytes(b"")
    assert "holds no checkpoint" in ran(NO, home, "verify", "--checkpoint", str(exported)).stderr
    exported.unlink()
    for missing in (exported, tmp_path):
        said = ran(WRONG_USAGE, home, "verify", "--checkpoint", str(missing)).stderr
        assert f"the checkpoints in {missing} cannot be read" in said
    exported.write_bytes(b"[" * 200_000)
    said = ran(NO, home, "verify", "--checkpoint", str(exported)).stderr
    assert "line 1 is no checkpoint (nested too deeply)" in said


def test_a_home_without_journals_is_not_proved(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    assert f"there is no journal and nothing signed in {tmp_path}" in ran(NO, tmp_path, "verify").stderr
    assert "holds no journal segment" in ran(NO, tmp_path, "verify", "--writer", "nobody").stderr


def test_whoever_holds_the_key_can_rewrite_what_never_got_out_and_not_what_did(home: Path, tmp_path: Path) -> None:
    ran(DONE, home, "checkpoint", "--to", str(tmp_path / "out"))
    honest = journal_of(home)
    honest.rewritten(tmp_path / "rewritten", 300)
    shutil.rmtree(honest.directory)
    (tmp_path / "rewritten").rename(honest.directory)
    assert "record" in ran(NO, home, "verify").stderr
    forged = signed(WRITER, journal_of(home).sha256s, signer_of(home, {}))
    (home / "checkpoints" / f"{WRITER}.jsonl").write_bytes(forged.line())
    ran(DONE, home, "verify")
    said = ran(NO, home, "verify", "--checkpoint", str(tmp_path / "out" / f"{WRITER}.jsonl")).stderr
    assert "not the one that the checkpoint was signed for" in said


def test_a_key_that_is_not_trusted_proves_nothing(home: Path, tmp_path: Path) -> None:
    other = signer_of(tmp_path / "other", {})
    (tmp_path / "other.pub").write_bytes(other.public_pem)
    assert "not signed by a key that is trusted" in ran(NO, home, "verify", "--key", str(tmp_path / "other.pub")).stderr
    own = next((home / "checkpoints").glob("*.pub"))
    ran(DONE, home, "verify", "--key", str(own), "--key", str(tmp_path / "other.pub"))
    (tmp_path / "other.pub").write_text("nonsense")
    assert "public key" in ran(WRONG_USAGE, home, "verify", "--key", str(tmp_path / "other.pub")).stderr


def test_what_retention_let_go_is_proved_by_the_hashes_of_the_tree(home: Path) -> None:
    first, second = segment_paths(home / "journal" / WRITER)[:2]
    first.unlink()
    kept_from = int(second.stem)
    said = ran(DONE, home, "verify").stdout
    assert f"records 1 to {kept_from - 1} are not here" in said
    assert "the store has the same records" in ran(DONE, home, "verify", "--store").stdout
    proof = json.loads(ran(DONE, home, "prove", "event-3").stdout)
    assert "payload" not in proof
    assert "whose bytes are not shown" in verified_proof(proof, public_key(home))
    (home / "checkpoints" / f"{WRITER}.tree").unlink()
    assert f"records 1 to {kept_from - 1} are missing" in ran(NO, home, "verify").stderr


def test_a_proof_is_made_for_any_record_and_the_verifier_takes_it_offline(live: Path, tmp_path: Path) -> None:
    shutil.copy(verifier.__file__, tmp_path / "verifier.py")
    (tmp_path / "key.pub").write_text(ran(DONE, live, "checkpoint", "--key").stdout)
    for number in (0, 255, 256, ROWS - 1):
        proof = ran(DONE, live, "prove", f"event-{number}").stdout
        assert json.loads(json.loads(proof)["payload"])["event_id"] == f"event-{number}"
        (tmp_path / "proof.json").write_text(proof)
        command = [sys.executable, "-I", "-S", "verifier.py", "proof", "proof.json", "--key", "key.pub"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert "is among the" in done.stdout


def test_a_proof_can_be_made_to_the_checkpoint_that_an_auditor_has(live: Path, tmp_path: Path) -> None:
    log = CheckpointLog(live / "checkpoints" / f"{WRITER}.jsonl").read()
    older = next(each for each in log if 5 < each.size < log[-1].size)
    (tmp_path / "older").write_bytes(older.line())
    proof = json.loads(ran(DONE, live, "prove", "event-3", "--checkpoint", str(tmp_path / "older")).stdout)
    assert proof["checkpoint"] == older.as_json()
    assert verified_proof(proof, public_key(live))
    behind = ran(NO, live, "prove", f"event-{ROWS - 1}", "--checkpoint", str(tmp_path / "older"))
    assert "is not signed yet" in behind.stderr
    (tmp_path / "older").write_bytes(b"nonsense\n")
    assert (
        "line 1 is no checkpoint" in ran(NO, live, "prove", "event-3", "--checkpoint", str(tmp_path / "older")).stderr
    )


def test_an_unknown_event_has_no_proof(live: Path) -> None:
    assert "there is no event nobody" in ran(NO, live, "prove", "nobody").stderr


def test_no_proof_is_handed_out_that_the_verifier_would_refuse(home: Path) -> None:
    tree = home / "checkpoints" / f"{WRITER}.tree"
    with open_ledger(home, url(home)) as client:
        client.flush()
        tree.write_bytes(bytes(len(tree.read_bytes())))
        assert "not in the tree that was signed" in ran(NO, home, "prove", "event-3").stderr
        assert "not those that were signed" in ran(NO, home, "consistency", "5", "50").stderr


def test_one_checkpoint_is_proved_to_continue_another(live: Path) -> None:
    checkpoints = CheckpointLog(live / "checkpoints" / f"{WRITER}.jsonl").read()
    old, new = checkpoints[0].as_json(), checkpoints[-1].as_json()
    assert old["size"] < new["size"]
    proof = json.loads(ran(DONE, live, "consistency", str(old["size"]), str(new["size"])).stdout)
    assert (proof["old_root"], proof["new_root"]) == (old["root"], new["root"])
    assert "begin with" in verified_consistency(old, new, proof)
    for sizes in (("0", "5"), ("5", "4"), ("1", "999999")):
        assert "sizes must ascend" in ran(NO, live, "consistency", *sizes).stderr
    ran(WRONG_USAGE, live, "consistency", "five", "six")


def test_the_newest_checkpoint_is_printed_and_copied_with_its_key(live: Path, tmp_path: Path) -> None:
    line = ran(DONE, live, "checkpoint", "--to", str(tmp_path / "out")).stdout
    newest = CheckpointLog(live / "checkpoints" / f"{WRITER}.jsonl").read()[-1]
    assert json.loads(line) == newest.as_json()
    assert (tmp_path / "out" / f"{WRITER}.latest.json").read_text() == line
    assert (tmp_path / "out" / f"{newest.key_id}.pub").read_bytes() == signer_of(live, {}).public_pem


def test_where_there_are_several_writers_one_has_to_be_said(home: Path) -> None:
    log = home / "checkpoints" / f"{WRITER}.jsonl"
    shutil.copy(log, home / "checkpoints" / "gateway-1.jsonl")
    assert "--writer: gateway-0, gateway-1" in ran(WRONG_USAGE, home, "checkpoint").stderr
    assert json.loads(ran(DONE, home, "checkpoint", "--writer", WRITER).stdout)["writer"] == WRITER
    assert "no checkpoint was signed for nobody" in ran(NO, home, "checkpoint", "--writer", "nobody").stderr


@pytest.mark.parametrize("content", [b"nonsense", None])
def test_a_signing_key_that_cannot_be_used_ends_in_a_line(home: Path, tmp_path: Path, content: bytes | None) -> None:
    key = tmp_path / "signing.key"
    if content is not None:
        key.write_bytes(content)
        key.chmod(0o600)
    command = [sys.executable, "-m", "ledger", "--home", str(home)]
    environ = {**os.environ, "BURSAR_SIGNING_KEY": str(key)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, cwd=Path.cwd())
    assert (done.returncode, done.stderr.count("\n")) == (WRONG_USAGE, 1)
    assert str(key) in done.stderr


def test_a_command_without_the_key_that_is_kept_elsewhere_signs_nothing(home: Path, tmp_path: Path) -> None:
    key = home / "secrets" / "signing.key"
    key.rename(tmp_path / "signing.key")
    log = home / "checkpoints" / f"{WRITER}.jsonl"
    signed_before = CheckpointLog(log).read()
    log.write_bytes(b"".join(each.line() for each in signed_before[:-1]))
    said = ran(DONE, home, "verify", "--store").stdout
    assert f"signed: all up to record {signed_before[-2].size}; " in said
    assert CheckpointLog(log).read() == signed_before[:-1]
    assert not key.exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BURSAR_SIGNING_KEY", str(tmp_path / "signing.key"))
        ran(DONE, home, "verify", "--store")
    assert CheckpointLog(log).read()[-1].root == signed_before[-1].root
    done = subprocess.run(
        [sys.executable, "-m", "ledger", "--home", str(home)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr.count("\n")) == (WRONG_USAGE, 1)
    assert "is not here" in done.stderr


def test_the_ledger_process_exports_what_it_signs_and_says_how_far_it_is(home: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    command = [sys.executable, "-m", "ledger", "--home", str(home), "--while-stdin"]
    command += ["--checkpoint-target", f"file://{target}", "--checkpoint-target", "http://127.0.0.1:9/hook"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=Path.cwd())
    try:
        deadline_s = time.monotonic() + 60
        while (client := running(home)) is None:
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        client.flush()
        status = client.status()["checkpoints"]
        newest = CheckpointLog(home / "checkpoints" / f"{WRITER}.jsonl").read()[-1]
        assert status["signed"] == {WRITER: newest.size}
        assert status["alarms"] == {}
        assert [each["target"] for each in status["exports"]] == [f"file://{target}", "http://127.0.0.1/hook"]
    finally:
        process.terminate()
        assert process.wait(60) == 0
        assert process.stdin is not None
        process.stdin.close()
    assert (target / f"{WRITER}.latest.json").read_bytes() == newest.line()


def test_a_target_that_is_none_ends_the_ledger_process_in_a_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ledger", "--home", str(tmp_path), "--checkpoint-target", "ftp://x"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path.cwd())
    assert (done.returncode, done.stderr.count("\n")) == (WRONG_USAGE, 1)
    assert "checkpoints go to" in done.stderr


def test_a_target_that_is_none_is_refused_by_the_configuration() -> None:
    assert Ledger(checkpoint_targets=("file:///worm", "https://audit.example/x")).checkpoint_token_env is None
    with pytest.raises(ValidationError, match="checkpoints go to"):
        Ledger(checkpoint_targets=("ftp://x",))


def test_the_key_of_the_home_signs_for_it(audited: Path) -> None:
    signer: Signer = signer_of(audited, {})
    assert (audited / "checkpoints" / f"{signer.key_id}.pub").read_bytes() == signer.public_pem
