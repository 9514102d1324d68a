"""Deterministic unit vectors for prompts."""

from array import array
from collections.abc import Sequence
from hashlib import shake_256
from math import sqrt


def embed(prompt_tokens: Sequence[int], dimensions: int) -> "array[float]":
    """A vector of length 1 (single precision) that depends on every token; equal prompts have equal vectors."""
    raw = array("h", shake_256(array("I", prompt_tokens).tobytes()).digest(2 * dimensions))
    # The half keeps every component, and so the norm, away from zero.
    values = [number + 0.5 for number in raw]
    norm = sqrt(sum(value * value for value in values))
    return array("f", (value / norm for value in values))
