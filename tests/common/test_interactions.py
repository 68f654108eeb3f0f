"""From rows to token ids and features: newest events kept, strictly one user's own, nothing fitted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from fedprofile.common.card import FederationCard
from fedprofile.common.interactions import Example, TextError, encode, render

CardData = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_base)


def _example(user: str, events: list[str], month: str | None = "w1") -> Example:
    rows = tuple({"action": "viewed", "item": item} for item in events)
    return Example(user, {"month": month, "visits": 5.0, "device": "phone"}, rows, 1, 0)


def _words(tokenizer: Any, ids: Any) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(ids.tolist()))


def test_events_come_oldest_first_and_the_row_last(card_data: CardData, tokenizer: Any) -> None:
    card = FederationCard.model_validate(card_data())
    records = encode([_example("u", ["w2", "w3"])], card, tokenizer)
    assert _words(tokenizer, records.tokens[0]) == "[CLS] viewed w2 ; viewed w3 ; a visitor in w1 [SEP]"


def test_the_cut_takes_the_oldest_events_whole(card_data: CardData, tokenizer: Any) -> None:
    card = FederationCard.model_validate(card_data(history={"max_tokens": 13}))
    records = encode([_example("u", [f"w{number}" for number in range(20)])], card, tokenizer)
    assert _words(tokenizer, records.tokens[0]) == "[CLS] viewed w18 ; viewed w19 ; a visitor in w1 [SEP]"
    few = FederationCard.model_validate(card_data(history={"max_events": 1, "max_tokens": 13}))
    records = encode([_example("u", ["w4", "w5"])], few, tokenizer)
    assert _words(tokenizer, records.tokens[0]) == "[CLS] viewed w5 ; a visitor in w1 [SEP]"


def test_a_row_that_is_longer_than_everything_keeps_its_end(card_data: CardData, tokenizer: Any) -> None:
    card = FederationCard.model_validate(card_data(history={"max_tokens": 8, "record": "{month}"}))
    long = " ".join(f"w{number}" for number in range(30))
    records = encode([_example("u", ["w1"], month=long)], card, tokenizer)
    assert _words(tokenizer, records.tokens[0]) == "[CLS] w24 w25 w26 w27 w28 w29 [SEP]"


def test_other_users_change_nothing(card_data: CardData, tokenizer: Any) -> None:
    card = FederationCard.model_validate(card_data())
    alone = encode([_example("u", ["w2"])], card, tokenizer)
    together = encode([_example("v", ["w9"] * 5, "w8"), _example("u", ["w2"])], card, tokenizer)
    assert np.array_equal(alone.tokens[0], together.tokens[1])
    assert np.array_equal(alone.features[0], together.features[1])


def test_users_are_numbered_and_can_be_taken(card_data: CardData, tokenizer: Any) -> None:
    card = FederationCard.model_validate(card_data())
    records = encode([_example(user, [user]) for user in ("w1", "w2", "w1", "w3")], card, tokenizer)
    assert records.users == ("w1", "w2", "w3")
    assert records.user.tolist() == [0, 1, 0, 2]
    kept = records.of_users(np.array([True, False, True]))
    assert kept.users == ("w1", "w3")
    assert kept.user.tolist() == [0, 0, 1]
    assert [ids.tolist() for ids in kept.tokens] == [records.tokens[place].tolist() for place in (0, 2, 3)]


def test_missing_values_and_numbers_render_plainly() -> None:
    assert render("{n} of {n:.1f} in {m:.2f}", {"n": 3.0, "m": None}) == "3 of 3.0 in unknown"


def test_records_do_not_show_themselves(card_data: CardData, tokenizer: Any) -> None:
    card = FederationCard.model_validate(card_data())
    example = _example("secret-user", ["w2"], month="secret-month")
    shown = repr(encode([example], card, tokenizer)) + repr(Example("u", {"month": "secret-month"}))
    assert "secret" not in shown


def test_a_text_at_which_the_tokenizer_fails_is_not_quoted(card_data: CardData) -> None:
    class Failing:
        def __call__(self, text: list[str], /, *, add_special_tokens: bool) -> Any:
            raise ValueError(f"no token for {text}")

    card = FederationCard.model_validate(card_data())
    with pytest.raises(TextError) as caught:
        encode([_example("u", ["secret"])], card, Failing())
    assert "secret" not in str(caught.value) and caught.value.__suppress_context__
    assert str(TextError()) == str(caught.value)


def test_an_event_in_many_histories_is_cut_into_tokens_once(card_data: CardData, tokenizer: Any) -> None:
    seen: list[str] = []

    class Counting:
        def __call__(self, text: list[str], /, *, add_special_tokens: bool) -> Any:
            seen.extend(text)
            return tokenizer(text, add_special_tokens=add_special_tokens)

    card = FederationCard.model_validate(card_data())
    examples = [_example("u", [f"w{number}" for number in range(length)]) for length in range(8)]
    found = encode(examples, card, Counting())
    assert sum(text.startswith("viewed") for text in seen) == 7
    for example, tokens in zip(examples, found.tokens, strict=True):
        assert tokens.tolist() == encode([example], card, tokenizer).tokens[0].tolist()
