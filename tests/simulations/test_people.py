"""Losses of people at several tenants, against an independent library: dp-accounting."""

import warnings
from pathlib import Path
from typing import Literal

import pytest
from dp_accounting import dp_event
from dp_accounting.pld import pld_privacy_accountant
from dp_accounting.privacy_accountant import NeighboringRelation

from fedprofile.client.ledger import Ledger
from fedprofile.client.ledger_summary import summary
from fedprofile.client.segments import SegmentPlan
from fedprofile.common.accounting import MechanismEvent, compose
from fedprofile.common.errors import DataError
from fedprofile.common.messages import Kind
from fedprofile.simulations.people import TenantEvents, personal_losses

DELTA = 1e-5
SHOP = TenantEvents((MechanismEvent(0.05, 1.1, 200),), (MechanismEvent(1.0, 9.0, 3),))
BANK = TenantEvents((MechanismEvent(0.1, 1.6, 100),), (MechanismEvent(1.0, 6.0, 2),))
SMALL = TenantEvents((MechanismEvent(0.3, 3.0, 50),), ())
EVENTS = {"shop": SHOP, "bank": BANK, "small": SMALL}


def _pld(events: list[MechanismEvent]) -> float:
    accountant = pld_privacy_accountant.PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE)
    for event in events:
        gaussian = dp_event.GaussianDpEvent(event.noise_multiplier)
        sampled = gaussian if event.sample_rate == 1 else dp_event.PoissonSampledDpEvent(event.sample_rate, gaussian)
        accountant.compose(sampled, event.steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(accountant.get_epsilon(DELTA))


@pytest.mark.parametrize(
    ("places", "events"),
    [
        ({"shop": "train"}, [*SHOP.train]),
        ({"shop": "train", "bank": "train"}, [*SHOP.train, *BANK.train]),
        ({"shop": "train", "bank": "evaluate"}, [*SHOP.train, *BANK.evaluate]),
        ({"shop": "train", "bank": "train", "small": "train"}, [*SHOP.train, *BANK.train, *SMALL.train]),
    ],
)
def test_a_persons_loss_is_the_composition_of_all_releases(
    places: dict[str, Literal["train", "evaluate"]], events: list[MechanismEvent]
) -> None:
    (found,) = personal_losses(EVENTS, {7: places}, DELTA)
    reference = _pld(events)
    assert reference - 1e-4 <= found.loss.epsilon <= 1.02 * reference
    assert (found.loss.unit, found.loss.delta, found.people) == ("person", DELTA, 1)
    if len(places) > 1:
        assert found.largest < found.loss.epsilon < found.added, "tighter than adding, never less than one tenant's"


def test_who_only_is_evaluated_pays_for_tables_alone_and_who_is_in_no_release_for_nothing() -> None:
    found = {
        loss.tenants: loss
        for loss in personal_losses(EVENTS, {1: {"shop": "evaluate"}, 2: {"small": "evaluate"}}, DELTA)
    }
    assert found[("shop", "evaluate"),].loss.epsilon == compose(SHOP.evaluate, DELTA).epsilon
    assert found[("small", "evaluate"),].loss.epsilon == 0


def test_people_with_the_same_tenants_are_counted_together_the_largest_loss_first() -> None:
    people: dict[int, dict[str, Literal["train", "evaluate"]]] = {
        1: {"shop": "train"},
        2: {"bank": "train", "shop": "train"},
        3: {"shop": "train", "bank": "train"},
        4: {},
    }
    first, second = personal_losses(EVENTS, people, DELTA)
    assert (first.tenants, first.people) == ((("bank", "train"), ("shop", "train")), 2)
    assert (second.tenants, second.people) == ((("shop", "train"),), 1)


def test_events_are_those_of_a_ledger(tmp_path: Path) -> None:
    path = tmp_path / "shop.sqlite"
    plan = SegmentPlan(
        card_hash="a" * 64,
        epsilon=3.0,
        delta=2e-6,
        sample_rate=0.1,
        noise_multiplier=2.0,
        clip_norm=1.0,
        records_per_user=4,
        local_steps=10,
        cap_steps=30,
        evaluation_noise_multiplier=5.0,
        cap_tables=2,
    )
    with Ledger.open(
        path, population="shop", user_column="user", epsilon=8.0, delta=1e-5, evaluation_users=0.2
    ) as ledger:
        segment = ledger.open_segment(plan)
        for number in (1, 2):
            ledger.reserve(segment, Kind.TRAIN, number, "b" * 64)
        ledger.reserve(segment, Kind.EVALUATE, 2, "b" * 64)
    found = summary(path)
    events = {"shop": TenantEvents.of(found.releases)}
    trained, evaluated = personal_losses(events, {1: {"shop": "train"}, 2: {"shop": "evaluate"}}, plan.delta)
    if trained.tenants != (("shop", "train"),):
        trained, evaluated = evaluated, trained
    assert trained.loss.epsilon == found.segments[0].train.epsilon > 0
    assert evaluated.loss.epsilon == found.segments[0].evaluation.epsilon > 0


def test_a_tenant_without_events_is_named() -> None:
    with pytest.raises(DataError, match=r"tenant.s. bakery, whose events are not given"):
        personal_losses(EVENTS, {1: {"bakery": "train"}}, DELTA)
