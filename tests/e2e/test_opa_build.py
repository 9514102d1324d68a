"""The one file that OPA polls: what is in it, who signed it, and that a bad one is never put in place of a good one."""

import shutil
import tarfile
from pathlib import Path

import orjson
import pytest

from policy.bundle import load
from policy.opa_build import Key, build, verify
from policy.port import BundleError
from tests import opa_server
from tests.e2e.test_opa_engine import SHIPPED, Keys, tamper

OPA = str(opa_server.binary())


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path, "ours")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SHIPPED, tmp_path / "rego"))


def contents(file: Path) -> dict[str, bytes]:
    with tarfile.open(file) as tar:
        return {member.name.lstrip("/"): tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def test_it_holds_the_rules_that_serve_and_the_tables_and_owns_their_names(tmp_path: Path, keys: Keys) -> None:
    file = tmp_path / "bundle.tar.gz"
    built = build(SHIPPED, file, OPA, Key(keys.private))
    bundle = load(SHIPPED)
    held = contents(file)
    modules = {module.file for module in bundle.modules}
    assert held.keys() == modules | {"data.json", ".manifest", ".signatures.json"}
    assert orjson.loads(held["data.json"]) == bundle.data
    assert {name: held[name].decode() for name in modules} == {each.file: each.text for each in bundle.modules}
    assert orjson.loads(held[".manifest"]) == {"revision": bundle.revision, "roots": ["bursar"], "rego_version": 1}
    assert (built.revision, built.is_signed, built.size_bytes) == (bundle.revision, True, file.stat().st_size)


def test_what_was_signed_is_verified_and_named_again(tmp_path: Path, keys: Keys) -> None:
    file = tmp_path / "bundle.tar.gz"
    built = build(SHIPPED, file, OPA, Key(keys.private), Key(keys.public))
    assert verify(file, OPA, Key(keys.public)) == built


def test_what_another_signed_or_changed_is_not(tmp_path: Path, keys: Keys) -> None:
    file = tmp_path / "bundle.tar.gz"
    build(SHIPPED, file, OPA, Key(keys.private))
    with pytest.raises(BundleError, match="failed to verify JWT signature"):
        verify(file, OPA, Key(Keys(tmp_path, "theirs").public))
    with pytest.raises(BundleError, match="scope mismatch"):
        verify(file, OPA, Key(keys.public, scope="other"))
    tamper(file)
    with pytest.raises(BundleError, match="digest mismatch"):
        verify(file, OPA, Key(keys.public))
    build(SHIPPED, file, OPA)
    with pytest.raises(BundleError, match=r"missing \.signatures\.json"):
        verify(file, OPA, Key(keys.public))


def test_what_its_own_key_does_not_verify_is_not_put_in_place(tmp_path: Path, keys: Keys) -> None:
    file = tmp_path / "bundle.tar.gz"
    file.write_bytes(b"the good one")
    with pytest.raises(BundleError, match="failed to verify"):
        build(SHIPPED, file, OPA, Key(keys.private), Key(Keys(tmp_path, "theirs").public))
    assert file.read_bytes() == b"the good one"


@pytest.mark.parametrize(
    ("rules", "place"),
    [
        ("package bursar.admission\n\nx := y\n", "bursar/admission/wrong.rego:3: .*y is unsafe"),
        ("package bursar.admission\n\nx := 1 if {\n", "bursar/admission/wrong.rego:3: this { is unclosed"),
        ('package bursar.admission\n\nx := count("a", "b")\n', "bursar/admission/wrong.rego:3: .*count"),
        ("package bursar.admission\n\nx := http.send({})\n", "bursar/admission/wrong.rego:3: .*not deterministic"),
        ('package bursar.admission\n\nx := net["lookup_ip_addr"]("a")\n', "bursar/admission/wrong.rego:3: "),
    ],
    ids=["unsafe", "unfinished", "of the wrong type", "not deterministic", "hidden"],
)
def test_a_mistake_is_named_by_file_and_line(tmp_path: Path, root: Path, rules: str, place: str) -> None:
    (root / "bursar" / "admission" / "wrong.rego").write_text(rules, encoding="utf-8")
    with pytest.raises(BundleError, match=f"^{place}"):
        build(root, tmp_path / "bundle.tar.gz", OPA)
    assert not (tmp_path / "bundle.tar.gz").exists()


def test_keys_that_are_none_are_told_apart(tmp_path: Path, keys: Keys) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    for key, why in ((tmp_path / "absent", "cannot be read"), (secret, "not a key in PEM form")):
        with pytest.raises(BundleError, match=why):
            build(SHIPPED, tmp_path / "bundle.tar.gz", OPA, Key(key))
    with pytest.raises(BundleError, match="opa build"):
        build(SHIPPED, tmp_path / "bundle.tar.gz", OPA, Key(keys.public))
    with pytest.raises(BundleError, match="no such file"):
        verify(tmp_path / "absent", OPA, Key(keys.public))


def test_an_opa_that_is_none_and_a_folder_without_admission_are_told(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be run"):
        build(SHIPPED, tmp_path / "bundle.tar.gz", str(tmp_path / "opa"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.rego").write_text("package a\n\nb := 1\n")
    with pytest.raises(BundleError, match=r"no rule data\.bursar\.admission\.decision"):
        build(tmp_path / "empty", tmp_path / "bundle.tar.gz", OPA)
