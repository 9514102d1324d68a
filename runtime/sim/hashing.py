"""Chained hashes of the blocks of a token sequence, as the served simulator's prefix cache knows them."""

from array import array
from collections.abc import Sequence
from hashlib import blake2b

_DIGEST_BYTES = 16


def root_hash(cache_salt: str) -> bytes:
    """The parent of a first block: requests share blocks only if their salts are equal."""
    return blake2b(cache_salt.encode(), digest_size=_DIGEST_BYTES).digest()


def chain_hashes(parent: bytes, token_ids: Sequence[int], block_size: int) -> list[bytes]:
    """One hash for each full block of `token_ids`, each over its parent's hash and its own tokens.

    A trailing partial block has none. Token ids must fit 32 unsigned bits, or OverflowError is raised.
    """
    packed = array("I", token_ids)
    width = packed.itemsize * block_size
    data = packed.tobytes()
    hashes: list[bytes] = []
    for start in range(0, len(data) - width + 1, width):
        parent = blake2b(parent + data[start : start + width], digest_size=_DIGEST_BYTES).digest()
        hashes.append(parent)
    return hashes
