"""Signing: the Ed25519 key that checkpoints are signed with, in the home unless the environment says where."""

import base64
import binascii
import hashlib
import os
import secrets
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

KEY_ENV = "BURSAR_SIGNING_KEY"
BEFORE_ENV = "BURSAR_SIGNING_KEY_BEFORE"
KEY_FILE = Path("secrets", "signing.key")
_KEY_BYTES_MAX = 1 << 16
_KEY_ID_CHARS = 16


# KeyRefused    a signing or public key cannot be used
# └── KeyAway   the key that signed before is not here
class KeyRefused(Exception):
    """A signing or public key cannot be used; the message names the file and says what to do."""


class KeyAway(KeyRefused):
    """The key that signed this home's checkpoints is not in it, and the environment does not say where it is."""


class Signer:
    """Signs with one private key; `key_id` names it and `public_pem` is what others verify with."""

    def __init__(self, private: Ed25519PrivateKey, before: Sequence[Ed25519PublicKey] = ()) -> None:
        """`before` are the public keys that it takes over from: what they signed it goes on from."""
        self._private = private
        public = private.public_key()
        self.key_id = key_id_of(public)
        self.trusted = {key_id_of(each): each for each in (*before, public)}
        self.public_pem = public.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def sign(self, message: bytes) -> str:
        """The signature in base64."""
        return base64.b64encode(self._private.sign(message)).decode()


def signer_of(home: Path, environ: Mapping[str, str] = os.environ) -> Signer:
    """The signer with the key that BURSAR_SIGNING_KEY names, or else the home's own, made at first use.

    BURSAR_SIGNING_KEY_BEFORE names the public key that it takes over from, where the key is changed: outside of the
    home, because whoever can write the home could put any key there. KeyRefused; KeyAway where there was a key before,
    because to make another would hide that it is gone.
    """
    named, before = environ.get(KEY_ENV, ""), environ.get(BEFORE_ENV, "")
    earlier = [public_key_in(Path(before))] if before else []
    if named:
        return Signer(_load(Path(named)), earlier)
    path = home / KEY_FILE
    if not path.exists():
        if any((home / "checkpoints").glob("*.pub")):
            raise KeyAway(f"the key that signed this home's checkpoints is not here: name it in {KEY_ENV}, or {path}")
        _make(path)
    return Signer(_load(path), earlier)


def public_key_in(path: Path) -> Ed25519PublicKey:
    """The public key in a PEM file. KeyRefused."""
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise KeyRefused(f"{path} cannot be read as a public key: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise KeyRefused(f"{path} holds no Ed25519 public key")
    return key


def is_signed(message: bytes, signature: str, public: Ed25519PublicKey) -> bool:
    """Whether a signature in base64 is that of the message by the key's holder."""
    try:
        public.verify(base64.b64decode(signature, validate=True), message)
    except (InvalidSignature, binascii.Error):
        return False
    return True


def key_id_of(public: Ed25519PublicKey) -> str:
    """What names a key: the first 16 hexadecimal characters of its SHA-256."""
    return hashlib.sha256(public.public_bytes_raw()).hexdigest()[:_KEY_ID_CHARS]


def _load(path: Path) -> Ed25519PrivateKey:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(_KEY_BYTES_MAX)
    except OSError as error:
        raise KeyRefused(f"the signing key {path} cannot be read: {error.strerror}; check {KEY_ENV}") from error
    if mode & 0o077:
        raise KeyRefused(f"the signing key {path} is open to others (mode {mode:04o}): chmod 600 it")
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyRefused(
            f"{path} holds no unencrypted Ed25519 private key: make one with `openssl genpkey -algorithm ed25519`"
        )
    return key


def _make(path: Path) -> None:
    """Makes a key unless another process has made one meanwhile."""
    content = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)
    except FileExistsError:
        return  # the other process's key is the one that counts
    finally:
        draft.unlink()
