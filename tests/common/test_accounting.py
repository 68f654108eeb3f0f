"""Composition against an independent library: Google's dp-accounting, privacy loss distributions."""

import math
import time
import warnings

import pytest
from dp_accounting import dp_event
from dp_accounting.pld import pld_privacy_accountant
from dp_accounting.privacy_accountant import NeighboringRelation

from fedprofile.common.accounting import (
    ACCOUNTED_SHARE,
    MechanismEvent,
    PrivacyLoss,
    compose,
    solve_noise_multiplier,
)
from fedprofile.common.errors import BudgetRefusal, ConfigError


def _pld(events: list[MechanismEvent], delta: float) -> float:
    accountant = pld_privacy_accountant.PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE)
    for event in events:
        gaussian = dp_event.GaussianDpEvent(event.noise_multiplier)
        sampled = gaussian if event.sample_rate == 1 else dp_event.PoissonSampledDpEvent(event.sample_rate, gaussian)
        accountant.compose(sampled, event.steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(accountant.get_epsilon(delta))


def _agrees(events: list[MechanismEvent], delta: float) -> None:
    ours, reference = compose(events, delta).epsilon, _pld(events, delta)
    assert ours >= reference - 1e-4, "the ledger would say less than is spent"
    assert ours - reference <= max(0.02 * reference, 0.02)


@pytest.mark.parametrize("delta", [1e-5, 1e-7])
@pytest.mark.parametrize(
    ("sample_rate", "noise_multiplier", "steps"),
    [
        (0.01, 0.8, 500),
        (0.02, 1.0, 1000),
        (0.1, 1.2, 30),
        (0.1, 2.0, 300),
        (0.3, 3.0, 200),
        (0.5, 4.0, 100),
        (0.1, 5.0, 1),
        (1.0, 2.0, 1),
        (1.0, 1.2, 1),
        (1.0, 8.9, 20),
        (1.0, 20.0, 100),
    ],
)
def test_composition_agrees_with_dp_accounting_and_is_never_below(
    sample_rate: float, noise_multiplier: float, steps: int, delta: float
) -> None:
    _agrees([MechanismEvent(sample_rate, noise_multiplier, steps)], delta)


def test_different_events_compose_together() -> None:
    _agrees([MechanismEvent(0.1, 2.0, 50), MechanismEvent(0.05, 1.5, 40), MechanismEvent(0.1, 2.0, 50)], 1e-6)


def test_equal_events_are_merged_and_order_does_not_matter() -> None:
    rows = [MechanismEvent(0.1, 2.0, 10) for _ in range(30)] + [MechanismEvent(0.2, 3.0, 5)]
    merged = [MechanismEvent(0.2, 3.0, 5), MechanismEvent(0.1, 2.0, 300)]
    assert compose(rows, 1e-5) == compose(merged, 1e-5) == compose(reversed(rows), 1e-5)


def test_nothing_released_costs_nothing() -> None:
    assert compose([], 1e-5) == PrivacyLoss(0.0, 1e-5, accountant="none")
    assert compose([MechanismEvent(0.1, 1.0, 0)], 1e-5).epsilon == 0


def test_a_very_large_loss_is_refused_at_once_instead_of_computed_for_minutes() -> None:
    start = time.monotonic()
    loss = compose([MechanismEvent(0.9, 0.15, 200)], 1e-6)
    assert math.isinf(loss.epsilon) and loss.accountant == "rdp"
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("epsilon", [0.5, 3.0, 8.0])
@pytest.mark.parametrize(("sample_rate", "steps"), [(0.1, 300), (1.0, 3)])
def test_the_solved_noise_is_enough_at_its_accounted_share_and_hardly_more(
    epsilon: float, sample_rate: float, steps: int
) -> None:
    sigma = solve_noise_multiplier(epsilon, 1e-5, sample_rate, steps)
    assert compose([MechanismEvent(sample_rate, ACCOUNTED_SHARE * sigma, steps)], 1e-5).epsilon <= epsilon
    assert compose([MechanismEvent(sample_rate, ACCOUNTED_SHARE * sigma * 0.997, steps)], 1e-5).epsilon > epsilon
    assert _pld([MechanismEvent(sample_rate, sigma, steps)], 1e-5) <= epsilon


def test_a_share_that_no_noise_reaches_is_refused() -> None:
    with pytest.raises(BudgetRefusal, match="too small"):
        solve_noise_multiplier(1e-9, 1e-12, 1.0, 1)


@pytest.mark.parametrize(("rate", "sigma", "steps"), [(0.0, 1.0, 1), (1.1, 1.0, 1), (0.1, 0.0, 1), (0.1, 1.0, -1)])
def test_what_is_not_a_mechanism_is_refused(rate: float, sigma: float, steps: int) -> None:
    with pytest.raises(ConfigError):
        MechanismEvent(rate, sigma, steps)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5])
def test_a_delta_outside_of_its_range_is_refused(delta: float) -> None:
    with pytest.raises(ConfigError):
        compose([], delta)


@pytest.mark.parametrize(("tenants", "epsilon"), [(2, 4.3), (5, 7.2), (10, 10.9)])
def test_a_user_of_several_tenants_has_the_composition_of_their_ledgers(tenants: int, epsilon: float) -> None:
    """The numbers of docs/privacy.md."""
    noise = ACCOUNTED_SHARE * solve_noise_multiplier(epsilon=3.0, delta=1e-5, sample_rate=0.02, steps=1000)
    assert compose([MechanismEvent(0.02, noise, 1000)] * tenants, 1e-5).epsilon == pytest.approx(epsilon, abs=0.06)


def test_an_epsilon_is_never_shown_bare() -> None:
    text = str(PrivacyLoss(3.0, 1e-5))
    assert all(part in text for part in ("epsilon=3", "delta=1e-05", "unit=user", "add-or-remove-one", "local", "prv"))
    assert set(PrivacyLoss(3.0, 1e-5).as_dict()) == {"epsilon", "delta", "accountant", "unit", "adjacency", "model"}
