"""Seeded sources of randomness, for simulations only.

Deployment draws from `fedprofile.client.randomness.SecureRandomness` and can build nothing else; the client never
imports this module (the import floors forbid it). A seed is derived by name, so that run, tenant, round and purpose
each have their own stream and no stream depends on how much another has drawn.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray


def derived_seed(*names: str | int) -> int:
    """A seed for one purpose.

    Args:
        names: For example the run's seed, the tenant, the round, the purpose.

    Returns:
        128 bits of SHA-256 over the names.
    """
    return int.from_bytes(hashlib.sha256("\0".join(map(str, names)).encode()).digest()[:16], "big")


def split_key(seed: int, tenant: str) -> bytes:
    """The key that decides who is an evaluation user; a deployed ledger draws its own.

    Args:
        seed: Of the split.
        tenant: Its name.

    Returns:
        32 bytes.
    """
    return hashlib.sha256(f"split {seed} {tenant}".encode()).digest()


class SeededRandomness:
    """A reproducible source with the interface of the secure one.

    Args:
        names: See `derived_seed`.
    """

    def __init__(self, *names: str | int) -> None:
        self._generator = np.random.Generator(np.random.Philox(derived_seed(*names)))

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Independent draws from [0, 1)."""
        return self._generator.random(count)

    def gaussian(self, count: int) -> NDArray[np.float64]:
        """Independent draws from the standard normal distribution."""
        return self._generator.standard_normal(count)


class NoNoise(SeededRandomness):
    """The same sampling with every Gaussian draw zero: what a federation would reach without privacy."""

    def gaussian(self, count: int) -> NDArray[np.float64]:
        """Zeros."""
        return np.zeros(count)
