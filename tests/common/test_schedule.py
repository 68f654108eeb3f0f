"""The schedule of the learning rates: what it is over a run, and that no round that a server names can raise it."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprofile.common.schedule import Kind, Schedule

KINDS: tuple[Kind, ...] = ("constant", "linear", "cosine")


@given(
    kind=st.sampled_from(KINDS),
    warmup=st.floats(0, 1, exclude_max=True),
    rounds=st.integers(1, 10_000),
    number=st.integers(-(2**63), 2**63),
    steps=st.integers(1, 10_000),
    step=st.integers(0, 10_000),
)
def test_no_round_raises_a_learning_rate_above_the_cards(
    kind: Kind, warmup: float, rounds: int, number: int, steps: int, step: int
) -> None:
    assert 0 <= Schedule(kind, warmup, rounds).factor(number, min(step, steps - 1), steps) <= 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_it_rises_once_and_falls_once_over_all_rounds(kind: Kind, steps: int) -> None:
    schedule = Schedule(kind, 0.25, 8)
    factors = [schedule.factor(1 + place // steps, place % steps, steps) for place in range(8 * steps)]
    top = 2 * steps
    assert factors[top] == 1.0
    assert factors[:top] == pytest.approx([(place + 1) / top for place in range(top)])
    assert all(later <= earlier for earlier, later in pairwise(factors[top:]))
    assert (factors[-1] < 0.2) == (kind != "constant")
    assert factors[-1] > 0


def test_without_one_all_steps_are_alike() -> None:
    assert {Schedule(rounds=5).factor(number, step, 3) for number in range(1, 6) for step in range(3)} == {1.0}
