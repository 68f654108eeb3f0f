"""What a tenant is shown, against numbers counted by hand."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedprofile.client.forecast import (
    Cost,
    Histogram,
    forecast_cost,
    forecast_json,
    forecast_text,
    read_data,
    require_known_words,
)
from fedprofile.client.segments import SegmentPlan
from fedprofile.common.accounting import ACCOUNTED_SHARE, MechanismEvent, compose
from fedprofile.common.card import FederationCard
from fedprofile.common.errors import ConfigError
from fedprofile.common.interactions import EncodedRecords

UNKNOWN = 1


@pytest.fixture(scope="module")
def card(card_data: Callable[..., dict[str, Any]]) -> FederationCard:
    return FederationCard.model_validate(card_data(history={"max_tokens": 8}))


def records() -> EncodedRecords:
    """Two users with three records and one."""
    tokens = [[2, 5, 3], [2, 1, 1, 3], [2, 5, 6, 7, 8, 9, 5, 3], [2, 1, 3]]
    return EncodedRecords(
        users=("a", "b"),
        user=np.array([0, 0, 1, 0]),
        tokens=[np.array(ids, dtype=np.int32) for ids in tokens],
        features=np.zeros((4, 3), np.float32),
        labels=np.array([0, 1, 0, 0]),
        groups=np.array([2, 0, 1, 0]),
    )


def test_the_data_in_numbers(card: FederationCard) -> None:
    found = read_data(records(), card=card, declared_users=10, records_per_user=4, unknown_token=UNKNOWN)
    assert (found.users, found.records) == (2, 4)
    assert (found.records_per_user.median, found.records_per_user.largest) == (2.0, 3)
    assert found.tokens.largest == 8
    assert found.full_histories == 0.25
    assert found.lengths == Histogram(tuple(range(9)), (0, 0, 2, 1, 0, 0, 0, 1))
    assert found.unknown_tokens == 3 / 18
    assert found.labels == {"no": 0.75, "yes": 0.25}
    # A user counts once, with the group of the first record.
    assert found.groups == {"north": 0, "south": 1, "other": 1}


@pytest.mark.parametrize(
    ("declared", "most", "told"),
    [
        (2, 4, "the exact number of users"),
        (10, 4, "20 % off"),
        (10, 1, "privacy.records_per_user=1"),
        (10, 4, "does not know many of your words"),
    ],
)
def test_warnings(card: FederationCard, declared: int, most: int, told: str) -> None:
    found = read_data(records(), card=card, declared_users=declared, records_per_user=most, unknown_token=UNKNOWN)
    assert any(told in warning for warning in found.warnings)


def test_a_base_that_does_not_know_the_language_is_refused(card: FederationCard) -> None:
    # 3 of 18 tokens are unknown; with the longest history left out, 3 of 10.
    mixed = read_data(records(), card=card, declared_users=10, records_per_user=4, unknown_token=UNKNOWN)
    require_known_words(mixed, card)
    few = records().of_users(np.array([True, False]))
    foreign = read_data(few, card=card, declared_users=10, records_per_user=4, unknown_token=UNKNOWN)
    with pytest.raises(ConfigError, match="more than 20% of your histories' tokens") as caught:
        require_known_words(foreign, card)
    assert "multilingual" in str(caught.value) and "Chinese" in str(caught.value)
    assert "30" not in str(caught.value), "the exact share is the tenant's own"


def test_lengths_are_drawn_as_bars() -> None:
    found = Histogram.of(np.array([0, 1, 12, 13, 64, 64, 64, 64]), 64)
    assert found.edges == (0, 8, 16, 24, 32, 40, 48, 56, 64) and found.counts == (2, 2, 0, 0, 0, 0, 0, 4)
    bars = [line.count("#") for line in found.lines()]
    assert bars == [20, 20, 0, 0, 0, 0, 0, 40]
    assert found.lines()[7].split() == ["57", "to", "64", "#" * 40, "4"]


def test_a_label_that_nobody_has_is_said(card: FederationCard) -> None:
    few = records().of_users(np.array([False, True]))
    found = read_data(few, card=card, declared_users=1000, records_per_user=4, unknown_token=None)
    assert any("label yes" in warning for warning in found.warnings)
    assert found.unknown_tokens == 0.0


def test_no_record_at_all(card: FederationCard) -> None:
    none = records().of_users(np.array([False, False]))
    found = read_data(none, card=card, declared_users=10, records_per_user=4, unknown_token=UNKNOWN)
    assert (found.users, found.records, found.tokens.largest) == (0, 0, 0)
    assert found.labels == {"no": 0.0, "yes": 0.0}


@pytest.fixture(scope="module")
def cost() -> Cost:
    plan = SegmentPlan(
        card_hash="a" * 64,
        epsilon=6.0,
        delta=1e-5,
        sample_rate=0.1,
        noise_multiplier=1.0,
        clip_norm=1.0,
        records_per_user=4,
        local_steps=5,
        cap_steps=100,
        evaluation_noise_multiplier=2.0,
        cap_tables=3,
    )
    return forecast_cost(plan, declared_users=500, rounds=20)


def test_the_cost_along_the_run(cost: Cost) -> None:
    assert list(cost.after) == [1, 7, 13, 20]
    assert cost.users_per_step == 50.0
    epsilons = [loss.epsilon for loss in cost.after.values()]
    assert epsilons == sorted(epsilons)
    # The accounted share of the noise, not the noise as drawn.
    expected = compose([MechanismEvent(0.1, ACCOUNTED_SHARE * 1.0, 100)], 1e-5)
    assert cost.after[20] == expected
    assert cost.noise_multiplier == ACCOUNTED_SHARE


def test_an_epsilon_is_never_shown_bare(card: FederationCard, cost: Cost) -> None:
    data = read_data(records(), card=card, declared_users=10, records_per_user=4, unknown_token=UNKNOWN)
    for line in forecast_text(data, cost).splitlines():
        if "epsilon" in line:
            assert all(word in line for word in ("delta=", "unit=user", "adjacency=", "accountant="))
    found = json.loads(json.dumps(forecast_json(data, cost)))
    assert {"epsilon", "delta", "unit", "adjacency", "model", "accountant"} <= set(found["cost"])
    assert all({"epsilon", "delta", "unit", "accountant"} <= set(row) for row in found["cost"]["after_rounds"])
