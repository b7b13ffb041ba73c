"""Numbers drawn by name: the same seed, body and purpose give the same number, in any order.

Nothing here keeps state, so what one request draws never depends on what came before it.
"""

from hashlib import blake2b
from math import exp
from random import Random
from statistics import NormalDist

_NORMAL = NormalDist()
_RANGE = 2**64


def uniform(seed: int, key: bytes, purpose: str, turn: int = 0) -> float:
    """A number above 0 and below 1; `turn` tells attempts at the same body apart."""
    digest = blake2b(key, digest_size=8, key=f"{seed}|{purpose}|{turn}".encode()[:64]).digest()
    return (int.from_bytes(digest, "big") + 0.5) / _RANGE


def lognormal(share: float, median: float, spread: float) -> float:
    """The value below which `share` of a long-tailed distribution lies."""
    return median * exp(spread * _NORMAL.inv_cdf(min(share, 1 - 1e-12))) if spread else median


def source(seed: int, key: bytes, purpose: str) -> Random:
    """A stream of numbers for one body."""
    digest = blake2b(key, digest_size=16, key=f"{seed}|{purpose}".encode()[:64]).digest()
    return Random(int.from_bytes(digest, "big"))  # noqa: S311 - answers, not secrets
