"""The federation card: its hash is its identity, and what it may not say is refused."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from fedprofile.common.card import EvaluationSpec, FederationCard, card_from_canonical, template_columns
from fedprofile.common.config import validate
from fedprofile.common.errors import ConfigError

CardData = Callable[..., dict[str, Any]]


def test_order_and_layout_do_not_change_the_hash_and_every_value_does(card_data: CardData) -> None:
    card = FederationCard.model_validate(card_data())
    turned = FederationCard.model_validate(dict(reversed(list(card_data().items()))))
    assert turned.hash == card.hash
    explicit = FederationCard.model_validate(json.loads(card.canonical()))
    assert explicit.hash == card.hash
    changed = [
        card_data(max_update_norm=10.5),
        card_data(training={"rounds": 3}),
        card_data(task={"labels": ["yes", "no"]}),
        card_data(history={"separator": " ;"}),
        card_data(adapter={"train": "B"}),
    ]
    hashes = {FederationCard.model_validate(data).hash for data in changed}
    assert len(hashes) == len(changed)
    assert card.hash not in hashes


def test_a_card_survives_its_canonical_form_and_nothing_else_is_accepted(card_data: CardData) -> None:
    card = FederationCard.model_validate(card_data())
    assert card_from_canonical(card.canonical(), "invite") == card
    for spoiled in (card.canonical() + b" ", card.canonical()[:-1], b"\xff", b"[]", b"[" * 100_000):
        with pytest.raises(ConfigError):
            card_from_canonical(spoiled, "invite")


@pytest.mark.parametrize(
    "template",
    ["{user.name}", "{items[0]}", "{0}", "{}", "{name!r}", "{price:{width}}", "{price:>9999999}", "{", "{a:zz}"],
)
def test_a_template_is_literals_and_columns_only(template: str) -> None:
    with pytest.raises(ValueError, match="template"):
        template_columns(template)


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"history": {"record": "from {region}"}}, "audits only"),
        ({"features": {"categorical": [{"name": "region", "values": ["north"]}]}}, "audits only"),
        ({"task": {"labels": ["no", "no"]}}, "distinct"),
        ({"task": {"labels": ["a", "b", "c"]}}, "exactly two"),
        ({"task": {"group": {"attribute": "region", "values": ["other"]}}}, "other"),
        ({"features": {"numeric": [{"name": "visits", "low": 5, "high": 5}]}}, "must ascend"),
        ({"history": {"record": "", "event": ""}}, "give a template"),
        ({"evaluation": {"patience": 2}}, "every-round"),
        ({"features": {"numeric": [{"name": "device", "low": 0, "high": 5}]}}, "named twice"),
    ],
)
def test_what_a_card_may_not_say(card_data: CardData, sections: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        validate(card_data(**sections), FederationCard, "federation.toml")


def test_when_tables_are_asked_for() -> None:
    assert EvaluationSpec().rounds(1) == (0, 1)
    assert EvaluationSpec(when="never").rounds(5) == ()
    assert EvaluationSpec(when="end").rounds(5) == (5,)
    assert EvaluationSpec(when="every-round").rounds(2) == (0, 1, 2)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"training": {"weight_decay": 0.1}}, "adamw"),
        ({"initial_adapter": "d" * 64, "adapter": {"train": "B"}}, "a_of"),
        ({"initial_adapter": "d" * 64, "adapter": {"train": "AB", "a_of": "e" * 64}}, "a_of"),
        ({"adapter": {"train": "B", "a_of": "e" * 64}}, "a_of"),
        ({"training": {"head_clip": 1.0}}, "head_clip"),
        ({"training": {"warmup": 1.0}}, "warmup"),
        ({"training": {"views": 0}}, "views"),
    ],
)
def test_settings_that_would_not_do_what_they_say_are_refused(
    sections: dict[str, Any], message: str, card_data: CardData
) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(card_data(**sections), FederationCard, "card")
