"""The secure source: moments, no repetition, no copies, no children."""

import copy
import os
import pickle

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fedprofile.client.randomness import SecureRandomness


def test_uniform_draws_are_uniform_on_the_unit_interval() -> None:
    draws = SecureRandomness().uniform(200_000)
    assert draws.dtype == np.float64 and draws.min() >= 0 and draws.max() < 1
    assert abs(draws.mean() - 0.5) < 5 * np.sqrt(1 / 12 / len(draws))
    counts = np.histogram(draws, bins=20, range=(0, 1))[0]
    expected = len(draws) / 20
    # Chi-square with 19 degrees of freedom: 60 has a probability of about 4e-6.
    assert ((counts - expected) ** 2 / expected).sum() < 60


def test_gaussian_draws_have_the_normal_moments() -> None:
    draws = SecureRandomness().gaussian(400_001)
    n = len(draws)
    assert n == 400_001 and np.isfinite(draws).all()
    for power, moment, variance in ((1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)):
        assert abs((draws**power).mean() - moment) < 5 * np.sqrt(variance / n)
    assert abs((np.abs(draws) < 1).mean() - 0.682689) < 5 * np.sqrt(0.2166 / n)
    # The two halves come from the same radii; they must not be correlated.
    half = n // 2
    assert abs(np.corrcoef(draws[:half], draws[half : 2 * half])[0, 1]) < 5 / np.sqrt(half)


def test_the_tail_reaches_beyond_nine_deviations_and_stays_finite() -> None:
    class Extreme(SecureRandomness):
        def _words(self, count: int) -> np.ndarray:
            words = np.zeros(count, dtype=np.uint64)
            words[1 : count // 2] = np.iinfo(np.uint64).max
            return words

    draws = Extreme().gaussian(4)
    assert np.isfinite(draws).all()
    assert draws[0] > 9 and draws[1] == 0


def test_two_sources_and_two_draws_never_repeat() -> None:
    first, second = SecureRandomness(), SecureRandomness()
    streams = [first.uniform(1000), first.uniform(1000), second.uniform(1000)]
    assert len(set(np.concatenate(streams).tolist())) == 3000


def test_the_stream_is_aes_in_counter_mode_under_a_key_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []
    system = os.urandom

    def recorded(count: int) -> bytes:
        asked.append(system(count))
        return asked[-1]

    monkeypatch.setattr(os, "urandom", recorded)
    draws = SecureRandomness().uniform(7)
    key, start = asked
    assert (len(key), len(start)) == (32, 16)
    # Counter mode by hand: each block is the encrypted counter.
    block = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    counters = [(int.from_bytes(start) + number) % 2**128 for number in range(4)]
    stream = b"".join(block.update(counter.to_bytes(16)) for counter in counters)
    words = [int.from_bytes(stream[8 * place : 8 * place + 8], "little") for place in range(7)]
    assert draws.tolist() == [(word >> 11) / 2**53 for word in words]


def test_nothing_is_drawn_for_nothing() -> None:
    source = SecureRandomness()
    assert source.gaussian(0).shape == (0,) and source.uniform(0).shape == (0,)


@pytest.mark.parametrize("carry", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_source_cannot_be_copied_or_stored(carry: object) -> None:
    with pytest.raises(TypeError, match="never come twice"):
        carry(SecureRandomness())  # type: ignore[operator]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*")
def test_a_forked_child_refuses_to_draw_the_parents_stream() -> None:
    source = SecureRandomness()
    child = os.fork()
    if child == 0:
        try:
            source.gaussian(1)
        except RuntimeError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
