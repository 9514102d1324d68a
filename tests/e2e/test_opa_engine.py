"""The OPA engine on a real OPA that polls signed bundles: activation, refusal, hot reload, death and return."""

import asyncio
import io
import shutil
import tarfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from policy.bundle import load
from policy.decider import Decider
from policy.opa import OpaEngine, OpaServer, OpaState
from policy.opa_build import Key, build, verify
from policy.port import ADMISSION, BundleError, EngineAway, EvaluationError, PolicyInput, PolicyUnavailable
from tests import opa_server
from tests.bundle_service import NAME, BundleService, serving

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "rego"
HANG_S = 60.0
TIMEOUT_MS = 5_000
GIVEN = PolicyInput("acme", "search", "web", (), "internal", "chat", "sim-small")


class Keys:
    """A key pair in PEM files."""

    def __init__(self, folder: Path, name: str) -> None:
        key = generate_private_key(SECP256R1())
        self.private, self.public = folder / f"{name}.pem", folder / f"{name}.pub"
        self.private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        self.public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


class Deployed:
    """A bundle folder, the file that is built of it, the service that serves it, and the OPA that polls that."""

    def __init__(self, folder: Path, service: BundleService, keys: Keys, opa: opa_server.OpaServer) -> None:
        self.root = folder / "rego"
        self.service = service
        self.keys = keys
        self.opa = opa

    def ship(self, key: Path | None = None, scope: str = "bursar") -> str:
        """Build what the folder holds, signed, and put it where OPA fetches it."""
        signing = Key(key or self.keys.private, scope=scope)
        return build(self.root, self.service.file, str(opa_server.binary()), signing).revision

    def edit(self, old: str, new: str) -> None:
        """Replace a text in the admission rules; it must be there."""
        file = self.root / "bursar" / "admission" / "admission.rego"
        text = file.read_text(encoding="utf-8")
        assert old in text
        file.write_text(text.replace(old, new), encoding="utf-8")


@pytest.fixture
def deployed(tmp_path: Path) -> Iterator[Deployed]:
    shutil.copytree(SHIPPED, tmp_path / "rego")
    keys = Keys(tmp_path, "ours")
    with serving(tmp_path / "bundle.tar.gz") as service:
        config = service.configuration(keys.public)
        opa = opa_server.OpaServer(config)
        shipped = Deployed(tmp_path, service, keys, opa)
        shipped.ship()
        with opa:
            yield shipped


@asynccontextmanager
async def engine_of(deployed: Deployed) -> AsyncIterator[OpaEngine]:
    """An engine that has heard of the first bundle, and polls."""
    engine = OpaEngine(OpaServer(deployed.opa.url, timeout_ms=TIMEOUT_MS, poll_s=0.05))
    running = asyncio.create_task(engine.run())
    try:
        await until(lambda: engine.revision != "")
        yield engine
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await engine.close()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(HANG_S):
        while not holds():  # noqa: ASYNC110  what is waited for happens in another process
            await asyncio.sleep(0.02)


async def test_a_signed_bundle_is_polled_activated_and_named_by_bursars_own_digest(deployed: Deployed) -> None:
    async with engine_of(deployed) as engine:
        assert engine.revision == load(SHIPPED).revision
        answer = await engine.evaluate(ADMISSION, orjson.dumps(GIVEN.document()))
        assert isinstance(answer.value, dict)
        assert answer.value["allow"] is True
        assert answer.revision == engine.revision
        assert len(answer.engine_decision_id) == 36
        decision = await Decider(engine).decide(GIVEN)
        assert (decision.allow, decision.revision) == (True, engine.revision)
    await until(lambda: deployed.service.unchanged > 0)  # it asks with the tag of what it has
    assert deployed.service.fetched >= 1


async def test_a_hot_reload_is_noticed_and_forgets_what_the_old_bundle_decided(deployed: Deployed) -> None:
    async with engine_of(deployed) as engine:
        decider = Decider(engine)
        before = await decider.decide(GIVEN)
        deployed.edit('decision := {"allow": true, "reasons": []', 'decision := {"allow": false, "reasons": []')
        revision = deployed.ship()
        assert revision != before.revision
        await until(lambda: engine.revision == revision)
        assert decider.cached(GIVEN) is None
        after = await decider.decide(GIVEN)
        assert (before.allow, after.allow, after.revision) == (True, False, revision)


@pytest.mark.parametrize("what", ["another key", "another scope", "no signature", "changed after it was signed"])
async def test_a_bad_signature_is_refused_the_last_good_bundle_serves_and_the_reason_is_told(
    deployed: Deployed, tmp_path: Path, what: str
) -> None:
    async with engine_of(deployed) as engine:
        good = engine.revision
        deployed.edit('decision := {"allow": true, "reasons": []', 'decision := {"allow": false, "reasons": []')
        if what == "another key":
            deployed.ship(Keys(tmp_path, "theirs").private)
        elif what == "another scope":
            deployed.ship(scope="theirs")
        elif what == "no signature":
            build(deployed.root, deployed.service.file, str(opa_server.binary()))
        else:
            tamper(deployed.service.file)
        with pytest.raises(BundleError):
            verify(deployed.service.file, str(opa_server.binary()), Key(deployed.keys.public))
        await until(lambda: engine_problem(deployed) != "")
        await engine.poll()
        assert engine.state == OpaState(good, is_away=False, problem=engine.state.problem)
        reasons = {
            "another key": "failed to verify JWT signature",
            "another scope": "scope mismatch",
            "no signature": "missing .signatures.json",
            "changed after it was signed": "digest mismatch",
        }
        assert reasons[what] in engine.state.problem
        assert (await Decider(engine).decide(GIVEN)).allow


def engine_problem(deployed: Deployed) -> str:
    status, said = deployed.opa.get("/v1/status")
    assert status == 200
    return str(said["result"]["bundles"][NAME].get("message", ""))


def tamper(file: Path) -> None:
    """Put other rules under the signature that the file has."""
    with tarfile.open(file) as tar:
        contents = {member: stream.read() for member in tar if (stream := tar.extractfile(member)) is not None}
    with tarfile.open(file, "w:gz") as tar:
        for member, content in contents.items():
            changed = content + b"\n# a line more\n" if member.name.endswith("/admission.rego") else content
            member.size = len(changed)
            tar.addfile(member, io.BytesIO(changed))


async def test_a_bundle_that_does_not_compile_is_not_built_and_says_where(deployed: Deployed) -> None:
    good = deployed.service.file.read_bytes()
    deployed.edit("open_for_work if input.env.freeze == false", "open_for_work if input.env.freeze == flase")
    with pytest.raises(BundleError, match=r"^bursar/admission/admission\.rego:\d+: .*flase") as caught:
        deployed.ship()
    assert caught.value.line > 0
    assert deployed.service.file.read_bytes() == good


async def test_one_that_is_killed_denies_or_marks_what_it_decided_before_until_it_is_back(deployed: Deployed) -> None:
    async with engine_of(deployed) as engine:
        strict, lenient = Decider(engine), Decider(engine, last_known_good_s=HANG_S)
        assert not (await lenient.decide(GIVEN)).is_last_known_good
        await strict.decide(GIVEN)
        deployed.opa.kill()
        await until(lambda: engine.away_since_s is not None)
        with pytest.raises(PolicyUnavailable):
            await strict.decide(GIVEN)
        known = await lenient.decide(GIVEN)
        assert (known.allow, known.is_last_known_good) == (True, True)
        with pytest.raises(PolicyUnavailable):
            await lenient.decide(GIVEN._replace(app="never-asked"))
        await asyncio.to_thread(deployed.opa.start)
        await until(lambda: engine.away_since_s is None)
        again = await strict.decide(GIVEN)
        assert (again.allow, again.is_last_known_good) == (True, False)


async def test_killed_and_restarted_under_load_nothing_is_decided_without_a_policy(deployed: Deployed) -> None:
    """Each decision is OPA's own, or an earlier one of the same input that is marked; all else is refused."""
    async with engine_of(deployed) as engine:
        decider = Decider(engine, last_known_good_s=HANG_S, cache_max=64)
        counts = {"decided": 0, "marked": 0, "refused": 0}
        stop = asyncio.Event()

        async def load(number: int) -> None:
            at = number
            while not stop.is_set():
                at += 8
                given = GIVEN._replace(app=f"app{at % 32}", model=("sim-small", "nobody's")[at % 2])
                try:
                    decision = await decider.decide(given)
                except PolicyUnavailable:
                    counts["refused"] += 1
                else:
                    assert decision.allow == (at % 2 == 0)
                    assert decision.revision == revision
                    counts["marked" if decision.is_last_known_good else "decided"] += 1
                await asyncio.sleep(0.001)

        revision = engine.revision
        loads = [asyncio.create_task(load(number)) for number in range(8)]
        await until(lambda: counts["decided"] > 500)
        for _ in range(2):
            deployed.opa.kill()
            marked = counts["marked"]
            await until(lambda marked=marked: counts["marked"] > marked + 100)  # type: ignore[misc]
            await asyncio.to_thread(deployed.opa.start)
            await until(lambda: engine.away_since_s is None)
            decided = counts["decided"]
            await until(lambda decided=decided: counts["decided"] > decided + 500)  # type: ignore[misc]
        stop.set()
        await asyncio.gather(*loads)


async def test_an_opa_that_has_no_bundle_decides_nothing(tmp_path: Path) -> None:
    """Policies that were pushed one by one have no revision, so nothing that they say could be explained later."""
    rules = tmp_path / "rules.rego"
    rules.write_text('package bursar.admission\n\ndecision := {"allow": true, "reasons": [], "obligations": {}}\n')
    with opa_server.OpaServer(paths=[rules]) as opa:
        engine = OpaEngine(OpaServer(opa.url, timeout_ms=TIMEOUT_MS))
        await engine.poll()
        with pytest.raises(EvaluationError, match="names no bundle") as caught:
            await engine.evaluate(ADMISSION, b"{}")
        assert not isinstance(caught.value, EngineAway)
        assert "names no bundle" in engine.state.problem
        await engine.close()


async def test_an_error_in_a_builtin_is_an_error_even_under_not(tmp_path: Path) -> None:
    """Without strict errors a failed call is undefined, which `not` turns into an allow."""
    rules = tmp_path / "bursar" / "admission" / "admission.rego"
    rules.parent.mkdir(parents=True)
    rules.write_text(
        "package bursar.admission\n\nimport rego.v1\n\n"
        'decision := {"allow": true, "reasons": [], "obligations": {}} if not refused\n\n'
        "refused if to_number(input.amount) > 10\n"
    )
    built = tmp_path / "bundle.tar.gz"
    build(tmp_path, built, str(opa_server.binary()))
    with opa_server.OpaServer(paths=[built], are_bundles=True) as opa:
        engine = OpaEngine(OpaServer(opa.url, timeout_ms=TIMEOUT_MS))
        assert (await engine.evaluate(ADMISSION, b'{"amount":"3"}')).value
        with pytest.raises(EvaluationError, match="to_number"):
            await engine.evaluate(ADMISSION, b'{"amount":"a lot"}')
        await engine.close()
