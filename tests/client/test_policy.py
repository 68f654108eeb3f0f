"""What the tenant's policy refuses, and with which code."""

from collections.abc import Callable
from datetime import date
from typing import Any

import pytest

from fedprofile.client.policy import Policy
from fedprofile.common.card import FederationCard
from fedprofile.common.errors import PolicyRefusal, RefusalCode
from fedprofile.common.messages import Kind, Request
from fedprofile.common.tenant import PolicySpec

TODAY = date(2026, 11, 23)
ALL = Policy(frozenset({"train", "evaluate", "deliver"}), max_rounds_a_day=3, until=TODAY)


@pytest.fixture
def card(card_data: Callable[..., dict[str, Any]]) -> FederationCard:
    return FederationCard.model_validate(card_data(training={"rounds": 4}))


def _request(card: FederationCard, kind: Kind = Kind.TRAIN, round_number: int = 1) -> Request:
    return Request(kind, card.hash, round_number, {})


def test_what_the_policy_allows_passes(card: FederationCard) -> None:
    for kind, rounds in ((Kind.TRAIN, (1, 4)), (Kind.EVALUATE, (0, 4)), (Kind.DELIVER, (0, 4))):
        for number in rounds:
            ALL.check(_request(card, kind, number), card, TODAY)


def test_another_card_is_refused_with_its_own_code(card: FederationCard) -> None:
    with pytest.raises(PolicyRefusal) as refused:
        ALL.check(Request(Kind.TRAIN, "0" * 64, 1, {}), card, TODAY)
    assert refused.value.code is RefusalCode.CARD


@pytest.mark.parametrize("kind", list(Kind))
def test_a_kind_that_is_not_listed_is_refused(card: FederationCard, kind: Kind) -> None:
    policy = Policy.of(PolicySpec(kinds=tuple({"train", "evaluate", "deliver"} - {kind.value.split(".")[-1]})))  # type: ignore[arg-type]
    with pytest.raises(PolicyRefusal, match=r"policy\.kinds") as refused:
        policy.check(_request(card, kind), card, TODAY)
    assert refused.value.code is RefusalCode.POLICY
    for other in set(Kind) - {kind}:
        policy.check(_request(card, other), card, TODAY)


def test_the_last_day_counts_and_the_next_does_not(card: FederationCard) -> None:
    ALL.check(_request(card), card, date(2026, 11, 23))
    with pytest.raises(PolicyRefusal, match=r"policy\.until"):
        ALL.check(_request(card), card, date(2026, 11, 24))


@pytest.mark.parametrize(("kind", "number"), [(Kind.TRAIN, 0), (Kind.TRAIN, 5), (Kind.EVALUATE, 5), (Kind.DELIVER, 9)])
def test_a_round_that_the_card_does_not_have_is_refused(card: FederationCard, kind: Kind, number: int) -> None:
    with pytest.raises(PolicyRefusal, match=f"round {number}"):
        ALL.check(_request(card, kind, number), card, TODAY)


def test_rounds_of_a_day_are_bounded(card: FederationCard) -> None:
    ALL.check_rounds(_request(card), 2)
    with pytest.raises(PolicyRefusal, match="max_rounds_a_day=3"):
        ALL.check_rounds(_request(card), 3)
    ALL.check_rounds(_request(card, Kind.EVALUATE), 3)
