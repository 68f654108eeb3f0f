"""The table's sensitivity by brute force over neighbouring data sets, and what a release is."""

import itertools
from typing import Any

import numpy as np
import pytest

from fedprofile.client.evaluation import PrivateEvaluator, evaluation_table
from fedprofile.client.noise import GRID
from fedprofile.client.randomness import SecureRandomness
from fedprofile.common.errors import ConfigError
from fedprofile.common.evaluation_tables import table_shape
from fedprofile.common.interactions import EncodedRecords
from fedprofile.common.messages import TABLE, Arrays
from fedprofile.common.tasks import (
    BinaryTask,
    Labels,
    MulticlassTask,
    MultilabelTask,
    RankingTask,
    RegressionTask,
    TaskSpec,
)

GROUP = {"attribute": "region", "values": ["north", "south"]}
RANGE = {"kind": "regression", "target": "rating", "low": 1, "high": 5}
FILMS = {"kind": "ranking", "candidates": list("abcdef"), "negatives": 2, "cutoff": 1}
TASKS: list[TaskSpec] = [
    BinaryTask.model_validate({"kind": "binary", "labels": ["no", "yes"]}),
    BinaryTask.model_validate({"kind": "binary", "labels": ["no", "yes"], "group": GROUP}),
    MulticlassTask.model_validate({"kind": "multiclass", "labels": ["a", "b", "c"]}),
    MulticlassTask.model_validate({"kind": "multiclass", "labels": ["a", "b", "c"], "group": GROUP}),
    RegressionTask.model_validate(RANGE),
    RegressionTask.model_validate({**RANGE, "group": GROUP}),
    MultilabelTask.model_validate({"kind": "multilabel", "labels": ["a", "b", "c"]}),
    MultilabelTask.model_validate({"kind": "multilabel", "labels": ["a", "b", "c"], "group": GROUP}),
    RankingTask.model_validate(FILMS),
    RankingTask.model_validate({**FILMS, "group": GROUP}),
]


class Silent:
    """No noise; the choice of records is the first ones."""

    def uniform(self, count: int) -> np.ndarray:
        return np.arange(count) / max(count, 1)

    def gaussian(self, count: int) -> np.ndarray:
        return np.zeros(count)


def _records(user: np.ndarray, labels: Labels, groups: np.ndarray, scores: np.ndarray) -> EncodedRecords:
    """Records whose features are the probabilities that the predictor below gives back."""
    return EncodedRecords(
        users=tuple(f"u{number}" for number in range(int(user.max(initial=-1)) + 1)),
        user=user,
        tokens=[np.zeros(1, np.int32)] * len(user),
        features=scores.astype(np.float32),
        labels=labels,
        groups=groups,
    )


def _predict(arrays: Arrays, records: EncodedRecords) -> np.ndarray:
    return records.features


def _people(task: TaskSpec, sizes: list[int], rng: np.random.Generator) -> EncodedRecords:
    rows, outputs = task.rows_per_record, task.logits
    user = np.repeat(np.arange(len(sizes)), np.array(sizes) * rows)
    n = len(user)
    scores = rng.random((n, outputs)).round(1)
    scores[rng.random(n) < 0.2] = [[np.nan, np.inf, -np.inf][place % 3] for place in range(outputs)]
    groups = np.repeat(rng.integers(0, 3, n // rows), rows)
    return _records(user, task.made_up(np.arange(n) if rows > 1 else rng.integers(0, 100, n)), groups, scores)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.kind}-{'group' if task.group else 'plain'}")
@pytest.mark.parametrize("limit", [1, 3, 20])
def test_adding_or_removing_any_user_moves_the_table_by_at_most_one(task: TaskSpec, limit: int) -> None:
    rng = np.random.default_rng(limit)
    evaluator = PrivateEvaluator(predict=_predict, task=task, noise_multiplier=1.0, records_per_user=limit)
    for _ in range(30):
        records = _people(task, rng.integers(1, 15, 6).tolist(), rng)
        whole = evaluator.evaluate({}, records, Silent())[TABLE]
        assert whole.shape == table_shape(task) and whole.dtype == np.float64
        assert whole.sum() == pytest.approx(6, abs=1e-6)
        for gone in range(6):
            keep = np.arange(6) != gone
            smaller = evaluator.evaluate({}, records.of_users(keep), Silent())[TABLE]
            change = whole - smaller
            assert np.abs(change).sum() <= 1 + 1e-6
            assert np.linalg.norm(change) <= 1 + 1e-6


@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.kind}-{'group' if task.group else 'plain'}")
def test_no_choice_of_records_gives_one_user_more_than_one(task: TaskSpec) -> None:
    """Exhaustive for a user of two records: every pair of labels, groups and extreme scores."""
    rows, outputs = task.rows_per_record, task.rows_per_record * task.logits
    extremes = [np.eye(outputs)[place] for place in range(outputs)]
    extremes += [np.full(outputs, value) for value in (np.nan, 1e308, -0.0)]
    single = list(itertools.product(range(3), range(3), extremes))
    for first, second in itertools.product(single, repeat=2):
        table = evaluation_table(
            np.array([first[2], second[2]]).reshape(2 * rows, -1),
            labels=np.concatenate([task.made_up(np.arange(rows) + record[0]) for record in (first, second)]),
            groups=np.repeat([first[1], second[1]], rows),
            user=np.full(2 * rows, 4),
            task=task,
        )
        assert (table >= 0).all() and table.sum() == pytest.approx(1.0)


def test_the_binary_table_counts_in_group_label_and_score_bin() -> None:
    table = evaluation_table(
        np.array([[0.95, 0.05], [0.0, 1.0], [0.42, 0.58]]),
        labels=np.array([0, 1, 1]),
        groups=np.array([0, 1, 2]),
        user=np.array([0, 1, 1]),
        task=TASKS[1],
    ).reshape(3, 2, 10)
    assert table[0, 0, 0] == 1 and table[1, 1, 9] == 0.5 and table[2, 1, 5] == 0.5 and table.sum() == 2


def test_the_multiclass_table_counts_right_wrong_and_predicted() -> None:
    table = evaluation_table(
        np.array([[0.1, 0.8, 0.1], [0.7, 0.2, 0.1]]),
        labels=np.array([1, 2]),
        groups=np.array([0, 0]),
        user=np.array([0, 1]),
        task=TASKS[2],
    )
    assert table[:6].reshape(3, 2).tolist() == [[0, 0], [0, 0.5], [0.5, 0]]
    assert table[6:].tolist() == [0.5, 0.5, 0]


def test_the_regression_table_counts_in_group_and_error_bin() -> None:
    """Of a range of 4: bins end at 0.04, 0.16, 0.36, 0.64, 1, 1.44, 1.96, 2.56, 3.24 and 4."""
    task = TASKS[5]
    assert isinstance(task, RegressionTask)
    predicted, target = np.array([3.0, 4.5, 1.0, 5.0]), [3.0, 4.3, 5.0, 9.0]
    table = evaluation_table(
        ((predicted - 1) / 4)[:, None],
        labels=task.as_array([task.scaled(value) for value in target]),
        groups=np.array([0, 0, 1, 2]),
        user=np.array([0, 0, 1, 2]),
        task=task,
    ).reshape(3, 10)
    expected = np.zeros((3, 10))
    # Errors 0 and 0.2 of one user; 4; and 0, because a target of 9 is clipped to 5.
    expected[0, 0] = expected[0, 2] = 0.5
    expected[1, 9] = expected[2, 0] = 1
    assert table.tolist() == expected.tolist()


def test_the_multilabel_table_counts_every_label_in_truth_and_score_bin() -> None:
    """One user with two records: each gives a sixth to a cell of each of the three labels."""
    table = evaluation_table(
        np.array([[0.95, 0.0, 0.5], [0.95, 1.0, 0.44]]),
        labels=np.array([0b001, 0b110]),
        groups=np.array([1, 1]),
        user=np.array([0, 0]),
        task=TASKS[7],
    ).reshape(3, 3, 2, 10)
    expected = np.zeros((3, 3, 2, 10))
    for label, truth, score in [(0, 1, 9), (1, 0, 0), (2, 0, 5), (0, 0, 9), (1, 1, 9), (2, 1, 4)]:
        expected[1, label, truth, score] += 1 / 6
    assert table == pytest.approx(expected)


def test_the_ranking_table_counts_in_group_and_rank_once_a_record() -> None:
    """Three rows a record: of equal scores the one that stands first is the higher, and NaN is the lowest."""
    scores = [[0.1, 0.9, 0.2], [0.5, 0.5, 0.5], [0.3, np.nan, 0.2]]
    chosen = [[0, 1, 0], [0, 0, 1], [0, 1, 0]]
    table = evaluation_table(
        np.array(scores).reshape(9, 1),
        labels=np.array(chosen).ravel(),
        groups=np.repeat([0, 2, 1], 3),
        user=np.repeat([0, 0, 1], 3),
        task=TASKS[9],
    ).reshape(3, 3)
    assert table.tolist() == [[0.5, 0, 0], [0, 0, 1], [0, 0, 0.5]]


def test_a_declined_group_puts_everyone_under_other() -> None:
    other = len(TASKS[1].group.all_values) - 1 if TASKS[1].group else 0
    rng = np.random.default_rng(0)
    records = _people(TASKS[1], [2, 2, 2], rng)
    declined = _records(records.user, records.labels, np.full(6, other), records.features)
    evaluator = PrivateEvaluator(predict=_predict, task=TASKS[1], noise_multiplier=1.0, records_per_user=4)
    by_group = evaluator.evaluate({}, declined, Silent())[TABLE].reshape(3, -1).sum(axis=1)
    assert by_group == pytest.approx([0, 0, 3], abs=1e-6)


def test_nobody_to_evaluate_still_releases_noise_on_the_grid() -> None:
    task: Any = TASKS[1]
    empty = _records(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 2)))
    evaluator = PrivateEvaluator(predict=_predict, task=task, noise_multiplier=4.0, records_per_user=2)
    tables = [evaluator.evaluate({}, empty, SecureRandomness())[TABLE] for _ in range(20)]
    values = np.concatenate(tables)
    assert abs(values.std() - 4.0) < 5 * 4.0 / np.sqrt(2 * len(values))
    whole = values / (4.0 * GRID)
    assert np.array_equal(whole, np.rint(whole))


def test_a_table_without_noise_is_refused() -> None:
    with pytest.raises(ConfigError, match="noise"):
        PrivateEvaluator(predict=_predict, task=TASKS[0], noise_multiplier=0.0, records_per_user=1)
