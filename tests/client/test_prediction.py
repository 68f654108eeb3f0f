"""What predictions of each kind of task look like in a file and as JSON."""

import csv
import io
from typing import Any

import numpy as np

from fedprofile.client.prediction import BEST, Predictions
from fedprofile.common.tasks import MultilabelTask, RankingTask

GENRES = MultilabelTask.model_validate({"kind": "multilabel", "labels": ["drama", "comedy, dark", "war"]})
FILMS = RankingTask.model_validate({"kind": "ranking", "candidates": [f"film {number}" for number in range(12)]})


def _rows(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text)))


def test_labels_that_do_not_exclude_one_another() -> None:
    scores = np.array([[0.9, 0.1, 0.5], [0.2, 0.49, 0.0]])
    found = Predictions(3, "c" * 64, GENRES, ("ann", "bob"), scores)
    assert _rows(found.as_csv()) == [
        ["user", "labels", "p(drama)", "p(comedy, dark)", "p(war)"],
        ["ann", "drama;war", "0.900000", "0.100000", "0.500000"],
        ["bob", "", "0.200000", "0.490000", "0.000000"],
    ]
    first: dict[str, Any] = found.as_rows()[0]
    assert first == {
        "user": "ann",
        "labels": ["drama", "war"],
        "probabilities": {"drama": 0.9, "comedy, dark": 0.1, "war": 0.5},
        "round": 3,
    }


def test_the_best_candidates_come_first_and_equal_ones_in_the_catalogues_order() -> None:
    scores = np.array([[0.5, 0.5, 0.9, *[0.1] * 9]])
    found = Predictions(3, "c" * 64, FILMS, ("ann",), scores)
    best = found.as_rows()[0]["best"]
    assert [one["candidate"] for one in best[:4]] == ["film 2", "film 0", "film 1", "film 3"] and len(best) == BEST
    rows = _rows(found.as_csv())
    assert rows[0] == ["user", "rank", "candidate", "score"] and rows[1] == ["ann", "1", "film 2", "0.900000"]
    assert len(rows) == 1 + BEST
