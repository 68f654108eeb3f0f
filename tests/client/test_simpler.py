"""What `check` says of simpler ways, and that the argument behind it holds on the real base."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedprofile.client.simpler import find_simpler
from fedprofile.common.card import FederationCard, load_card
from fedprofile.common.interactions import EncodedRecords, Example, encode
from fedprofile.common.modeling.base import embedded_folder, load_base, resolve_base
from fedprofile.common.modeling.prefix_cache import PrefixCache
from fedprofile.common.modeling.profile_model import ProfileModel
from fedprofile.simulations.scenarios import CONFIGS, changed

CardData = Callable[..., dict[str, Any]]
HIDDEN = 4


def records(texts: int, each: int = 2) -> EncodedRecords:
    """So many different texts, each of several users."""
    count = texts * each
    return EncodedRecords(
        users=tuple(f"user-{number}" for number in range(count)),
        user=np.arange(count),
        tokens=[np.array([2, 10 + number % texts, 3], dtype=np.int32) for number in range(count)],
        features=np.zeros((count, 3), np.float32),
        labels=np.zeros(count, np.int64),
        groups=np.zeros(count, np.int64),
    )


@pytest.mark.parametrize(("texts", "use"), [(HIDDEN, "probe"), (HIDDEN + 1, None)])
def test_texts_are_few_up_to_the_number_of_values_of_a_vector(card_data: CardData, texts: int, use: str) -> None:
    found = find_simpler(FederationCard.model_validate(card_data()), records(texts), HIDDEN)
    assert (found.use, found.texts) == (use, texts)
    assert ("adapter.method = 'head'" in found.why) is (use == "probe")


def test_a_text_of_columns_alone_is_told_from_one_with_events(card_data: CardData) -> None:
    months = [{"name": "device", "values": ["phone", "desk"]}, {"name": "month", "values": ["May", "June"]}]
    features = {"categorical": months}
    alone = FederationCard.model_validate(card_data(history={"event": ""}, features=features))
    assert find_simpler(alone, records(9), HIDDEN).use == "columns"
    # With another column in the text, or with events, the text tells more.
    for other in ({"event": ""}, {}):
        sections = {"history": other, "features": features if other == {} else {"categorical": months[:1]}}
        assert find_simpler(FederationCard.model_validate(card_data(**sections)), records(9), HIDDEN).use is None


def test_a_card_without_lora_needs_no_advice(card_data: CardData) -> None:
    card = FederationCard.model_validate(card_data(adapter={"method": "head"}))
    assert find_simpler(card, records(2), HIDDEN).use is None


@pytest.mark.skipif(embedded_folder() is None, reason="the embedded base model is not installed")
def test_a_head_on_the_frozen_text_gives_few_texts_any_logits() -> None:
    """The argument itself, on the base and all texts of a shipped scenario: least squares leaves nothing over."""
    card = changed(load_card(CONFIGS / "purchase-intention" / "federation.toml"), adapter={"method": "head"})
    base, tokenizer = load_base(resolve_base(card.base))
    named = {feature.name: feature.values for feature in card.features.categorical}
    rows = [
        Example(f"user-{number}", {"Month": month, "VisitorType": kind})
        for number, (month, kind) in enumerate(itertools.product(named["Month"], named["VisitorType"]))
    ]
    encoded = encode(rows, card, tokenizer)
    model = ProfileModel(card, base, tokenizer)
    found = find_simpler(changed(card, adapter={"method": "lora"}), encoded, model.hidden_size)
    assert found.texts == len(rows) == 36 and found.use == "columns"
    vectors = PrefixCache(model).get(encoded.tokens, 1).numpy().astype(np.float64)
    wanted = np.random.default_rng(0).normal(size=(len(rows), 3))
    inputs = np.hstack([vectors, np.ones((len(rows), 1))])
    solved = np.linalg.lstsq(inputs, wanted, rcond=None)[0]
    assert np.abs(inputs @ solved - wanted).max() < 1e-3
