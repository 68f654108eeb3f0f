"""Where sampling, choice of records and noise come from: one cipher stream, keyed anew for each reservation.

Why it is private: the same noise used twice gives a user away by subtraction, so the key is drawn from the operating
system when the source is made and is never stored, derived, restored, logged, copied or shared with a child process.
A training that restarts makes a new source and reserves anew. Seeded sources exist in `fedprofile.simulations` only;
nothing in `fedprofile.client` can build one.

Guarantees, each with a test:
    - two sources never give the same stream;
    - a source cannot be pickled or copied, and refuses to draw in a forked child;
    - uniform draws lie in [0, 1); Gaussian draws are finite and reach beyond 9 standard deviations.
"""

import os
from typing import NoReturn, Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray


class Randomness(Protocol):
    """A source of independent draws."""

    def uniform(self, count: int) -> NDArray[np.float64]:
        """`count` independent draws from [0, 1)."""
        ...

    def gaussian(self, count: int) -> NDArray[np.float64]:
        """`count` independent draws from the standard normal distribution."""
        ...


class SecureRandomness:
    """AES-256 in counter mode under a key from `os.urandom`.

    At 128 bits a block the stream does not repeat, and a release holds fewer than 2**40 blocks, far from where
    counter mode can be told from random bits.
    """

    def __init__(self) -> None:
        self._stream = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(os.urandom(16))).encryptor()
        self._process = os.getpid()

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Multiples of 2**-53: a draw is below q with probability q to within 2**-53."""
        return (self._words(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def gaussian(self, count: int) -> NDArray[np.float64]:
        """Box-Muller in float64.

        The radius comes from all 64 bits of a word, so that the tail ends at 9.5 standard deviations (probability
        2e-21) and not at the 8.6 of 53 bits. Values are used only after rounding to a grid (see `noise.py`), which
        is what keeps their low bits from telling anything.
        """
        half = (count + 1) // 2
        words = self._words(2 * half)
        radius = np.sqrt(-2.0 * np.log((words[:half].astype(np.float64) + 0.5) * 2.0**-64))
        angle = (words[half:] >> np.uint64(11)).astype(np.float64) * (2.0 * np.pi * 2.0**-53)
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]

    def _words(self, count: int) -> NDArray[np.uint64]:
        if os.getpid() != self._process:
            raise RuntimeError("a source of randomness was carried into another process; make a new one there")
        return np.frombuffer(self._stream.update(bytes(8 * count)), dtype="<u8")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a source of randomness cannot be copied or stored: its noise must never come twice")
