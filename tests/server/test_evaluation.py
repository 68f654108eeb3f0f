"""Tables are summed, and early stopping sees their uncertainty."""

from collections.abc import Callable

import numpy as np

from fedprofile.common.card import FederationCard
from fedprofile.common.evaluation_tables import Interval, metrics_from_table
from fedprofile.common.messages import TABLE
from fedprofile.common.tasks import RegressionTask
from fedprofile.server.evaluation import EarlyStopping, TableSum, headline, merit


def test_tables_and_variances_add_up(make_card: Callable[..., FederationCard]) -> None:
    task = make_card().task
    draw = np.random.default_rng(0)
    one, two = 50 + 10 * draw.random(20), 500 + 100 * draw.random(20)
    tables = TableSum(task)
    tables.add({TABLE: one}, 2.0)
    tables.add({TABLE: two}, 3.0)
    assert tables.metrics() == metrics_from_table(one + two, 13.0, task)
    # An average of the two tenants' own metrics would be another number.
    assert tables.metrics()["auc"] != metrics_from_table((one + two) / 2, 13.0, task)["auc"]


def test_negative_cells_are_not_clipped(make_card: Callable[..., FederationCard]) -> None:
    task = make_card().task
    table = np.full(20, 100.0)
    table[0], table[5] = -40.0, -3.0
    tables = TableSum(task)
    tables.add({TABLE: table}, 1.0)
    auc, clipped = tables.metrics()["auc"], metrics_from_table(np.clip(table, 0, None), 1.0, task)["auc"]
    assert auc is not None and clipped is not None and auc.value != clipped.value


def test_no_table_says_nothing_and_few_users_say_none(make_card: Callable[..., FederationCard]) -> None:
    task = make_card().task
    assert TableSum(task).metrics() == {}
    few = TableSum(task)
    few.add({TABLE: np.full(20, 0.1)}, 5.0)
    assert few.metrics()["auc"] is None


def test_the_headline_follows_the_task(make_card: Callable[..., FederationCard]) -> None:
    assert headline(make_card().task) == "auc"
    assert headline(make_card(task={"kind": "multiclass", "labels": ["a", "b", "c"]}).task) == "accuracy"


def test_a_smaller_error_is_more_merit() -> None:
    task = RegressionTask.model_validate({"kind": "regression", "target": "mark", "low": 20, "high": 120})
    name = headline(task)
    assert merit({name: Interval(25.0, 10.0, 40.0)}, name, task) == Interval(0.75, 0.6, 0.9)
    assert merit({name: None}, name, task) is None and merit({}, name, task) is None
    stopping = EarlyStopping(patience=1)
    assert not stopping.update(merit({name: Interval(25.0, 20.0, 30.0)}, name, task))
    assert not stopping.update(merit({name: Interval(15.0, 10.0, 20.0)}, name, task))
    assert stopping.update(merit({name: Interval(16.0, 11.0, 21.0)}, name, task))


def test_stops_after_patience_without_a_gain_beyond_the_interval() -> None:
    stopping = EarlyStopping(patience=2)
    assert not stopping.update(Interval(0.60, 0.55, 0.65))
    assert not stopping.update(None)
    assert not stopping.update(Interval(0.64, 0.59, 0.69))
    assert not stopping.update(Interval(0.66, 0.61, 0.71))
    assert stopping.waited == 0
    assert not stopping.update(Interval(0.70, 0.65, 0.75))
    assert stopping.update(Interval(0.71, 0.66, 0.76))


def test_no_patience_never_stops() -> None:
    stopping = EarlyStopping(patience=0)
    assert not any(stopping.update(Interval(0.5, 0.4, 0.6)) for _ in range(50))
