"""The candidates beside a chosen one: a function of one user's rows, drawn uniformly, with the chosen one anywhere."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

from fedprofile.common.candidates import as_questions, encode_records
from fedprofile.common.card import FederationCard
from fedprofile.common.interactions import EncodedRecords, Example, Tokenizer
from fedprofile.common.modeling.base import load_base, resolve_base

CANDIDATES = [f"w{number}" for number in range(4, 12)]
TASK = {"kind": "ranking", "candidates": CANDIDATES, "negatives": 3}


@pytest.fixture
def card(card_data: Callable[..., dict[str, Any]]) -> FederationCard:
    history = {"record": "{candidate}", "event": "{item}"}
    data = card_data(history=history, features={"numeric": [], "categorical": []})
    return FederationCard.model_validate({**data, "task": TASK})


@pytest.fixture
def tokenizer(card: FederationCard, tiny_base: Any) -> Tokenizer:
    found: Tokenizer = load_base(resolve_base(card.base, tiny_base))[1]
    return found


def _examples(users: int, each: int) -> list[Example]:
    return [
        Example(f"u{user}", {}, ({"item": "w30"},) * (number % 2), (user + number) % len(CANDIDATES), user % 3)
        for number in range(each)
        for user in range(users)
    ]


def _last_words(records: EncodedRecords, tokenizer: Any) -> list[str]:
    return [tokenizer.decode(tokens, skip_special_tokens=True).split()[-1] for tokens in records.tokens]


def test_each_record_has_the_chosen_candidate_once_and_different_others(
    card: FederationCard, tokenizer: Tokenizer
) -> None:
    examples = _examples(20, 3)
    records = encode_records(examples, card, tokenizer)
    assert len(records) == 4 * len(examples) and records.labels.reshape(-1, 4).sum(axis=1).tolist() == [1] * 60
    words = np.array(_last_words(records, tokenizer)).reshape(-1, 4)
    assert all(len(set(row)) == 4 for row in words.tolist()) and set(words.ravel()) == set(CANDIDATES)
    chosen = words[records.labels.reshape(-1, 4) == 1].tolist()
    assert chosen == [CANDIDATES[int(example.label)] for example in examples]
    assert records.groups.tolist() == [example.group for example in examples for _ in range(4)]
    assert [records.users[place] for place in records.user[::4]] == [example.user for example in examples]


def test_a_users_rows_do_not_depend_on_other_users(card: FederationCard, tokenizer: Tokenizer) -> None:
    everyone = _examples(6, 4)
    mine = [example for example in everyone if example.user == "u2"]
    alone, among = (encode_records(examples, card, tokenizer) for examples in (mine, everyone))
    place = among.users.index("u2")
    kept = among.of_users(np.arange(6) == place)
    assert [tokens.tolist() for tokens in kept.tokens] == [tokens.tolist() for tokens in alone.tokens]
    assert kept.labels.tolist() == alone.labels.tolist()


def test_others_are_drawn_uniformly_and_the_chosen_one_stands_anywhere(
    card: FederationCard, tokenizer: Tokenizer
) -> None:
    examples = [Example(f"u{user}", {}, (), 2) for user in range(4000)]
    records = encode_records(examples, card, tokenizer)
    words, chosen = np.array(_last_words(records, tokenizer)), records.labels == 1
    others = Counter(words[~chosen].tolist())
    assert set(others) == set(CANDIDATES) - {CANDIDATES[2]}
    # Without replacement within a record, counts vary a little less than this test takes them to.
    assert chisquare(list(others.values())).pvalue > 1e-4
    assert chisquare(np.bincount(np.flatnonzero(chosen) % 4)).pvalue > 1e-4


def test_what_was_chosen_is_not_known_of_a_question(card: FederationCard, tokenizer: Tokenizer) -> None:
    unknown = encode_records([Example("u", {}, (), -1)], card, tokenizer)
    assert len(unknown) == 4 and not unknown.labelled.any()
    asked = as_questions([Example("u", {}, (), 3), Example("v", {}, (), 1)], card.task)
    assert [(row.user, row.row["candidate"], row.label) for row in asked] == [
        (user, candidate, -1) for user in "uv" for candidate in CANDIDATES
    ]
