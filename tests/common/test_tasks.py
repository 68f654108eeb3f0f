"""What a card may say of its task, and what its labels are as numbers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedprofile.common.card import FederationCard, card_from_canonical
from fedprofile.common.config import validate
from fedprofile.common.errors import ConfigError
from fedprofile.common.tasks import MultilabelTask, RegressionTask

RATING = {"kind": "regression", "target": "rating", "low": 1, "high": 5}


def _card(card_data: Callable[..., dict[str, Any]], task: dict[str, Any], **sections: Any) -> FederationCard:
    return validate({**card_data(**sections), "task": task}, FederationCard, "federation.toml")


FRAUD = {"kind": "binary", "labels": ["no", "fraud"], "false_positive_rate": 0.05}


GENRES = {"kind": "multilabel", "labels": ["drama", "comedy", "war"]}
FILMS = {"kind": "ranking", "candidates": ["Alien", "Brazil", "Casablanca", "Dune"], "negatives": 2, "cutoff": 1}
RANKED: dict[str, Any] = {
    "history": {"record": "Next: {candidate}", "event": "{month}"},
    "features": {"numeric": [], "categorical": []},
}


@pytest.mark.parametrize("task", [FRAUD, RATING, {**RATING, "loss": "huber", "huber_delta": 0.2}, GENRES, FILMS])
def test_a_card_of_each_kind_survives_its_canonical_form(
    task: dict[str, Any], card_data: Callable[..., dict[str, Any]]
) -> None:
    card = _card(card_data, task, **(RANKED if task["kind"] == "ranking" else {}))
    assert card_from_canonical(card.canonical(), "invite") == card
    assert card.hash != FederationCard.model_validate(card_data()).hash


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({**RATING, "high": 1}, "low must be below high"),
        ({**RATING, "low": -1e308, "high": 1e308}, "both finite"),
        ({**RATING, "labels": ["no", "yes"]}, "labels"),
        ({"kind": "regression", "low": 1, "high": 5}, "target"),
        ({**RATING, "huber_delta": 0}, "huber_delta"),
        ({**RATING, "loss": "absolute"}, "loss"),
        ({"kind": "binary", "labels": ["no", "yes"], "low": 0}, "low"),
        ({**FRAUD, "false_positive_rate": 1.0}, "false_positive_rate"),
        ({**RATING, "false_positive_rate": 0.1}, "false_positive_rate"),
        ({"kind": "clustering"}, "kind"),
        ({**GENRES, "labels": ["drama", "comedy;war"]}, "label 'comedy;war' is empty, has spaces around it, or holds"),
        ({**GENRES, "labels": ["drama", " war"]}, "spaces around it"),
        ({**GENRES, "labels": [f"label-{number}" for number in range(63)]}, "labels"),
        ({**FILMS, "negatives": 4}, "negatives=4 must be fewer than the 4 candidates"),
        ({**FILMS, "cutoff": 3}, "cutoff=3 must be at most negatives=2"),
        ({**FILMS, "candidates": ["Alien", "Alien", "Dune"]}, "candidates must be distinct"),
        ({**FILMS, "candidates": ["Alien ", "Brazil", "Dune"]}, "white space around it"),
        (FILMS, r"needs \{candidate\} in history.record"),
    ],
)
def test_what_a_task_may_not_say(task: dict[str, Any], said: str, card_data: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(ConfigError, match=said):
        _card(card_data, task)


def test_columns_cannot_rank_candidates(card_data: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(ConfigError, match="the same for all candidates"):
        _card(card_data, FILMS, history=RANKED["history"])


def test_a_rankings_candidate_is_no_column_of_a_source(card_data: Callable[..., dict[str, Any]]) -> None:
    history = {"record": "{month}: {candidate}", "event": ""}
    assert _card(card_data, FILMS, **{**RANKED, "history": history}).record_columns == {"month"}


def test_a_set_of_labels_is_one_number() -> None:
    task = MultilabelTask.model_validate({**GENRES, "separator": ","})
    assert task.truths(np.array([0, 1, 6])).tolist() == [[False] * 3, [True, False, False], [False, True, True]]
    assert [task.name_of(label) for label in (0, 1, 6)] == ["", "drama", "comedy,war"]
    assert task.shares(np.array([0, 1, 5]), 4) == {"drama": 0.5, "comedy": 0, "war": 0.25}
    many = MultilabelTask(kind="multilabel", labels=tuple(map(str, range(62))))
    everything = many.as_array([2**62 - 1])
    assert everything[0] > 0 and many.truths(everything).all()


def test_a_target_is_clipped_to_the_public_range_and_scaled() -> None:
    task = RegressionTask.model_validate({**RATING, "low": -10, "high": 30})
    assert [task.scaled(value) for value in (-1e308, -10.0, 0.0, 30.0, 1e308)] == [0, 0, 0.25, 1, 1]
    assert task.in_unit(np.array([0.0, 0.25, 1.0])).tolist() == [-10, 0, 30]
    assert task.shares(np.array([0.0, 0.3, 0.3, 1.0]), 5) == {
        "-10 to 0": 0.2,
        "0 to 10": 0.4,
        "10 to 20": 0,
        "20 to 30": 0.2,
    }
