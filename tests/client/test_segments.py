"""The plan of a run: noise for the share, caps, and what is refused."""

from collections.abc import Callable
from typing import Any

import pytest

from fedprofile.client.segments import SegmentPlan, plan_segment
from fedprofile.common.accounting import compose
from fedprofile.common.card import FederationCard
from fedprofile.common.errors import ConfigError, PolicyRefusal
from fedprofile.common.tenant import TenantFile


def _tenant(**sections: dict[str, Any]) -> TenantFile:
    data: dict[str, Any] = {
        "source": {"kind": "csv", "path": "rows.csv"},
        "columns": {"user": "user", "label": "bought"},
        "population": {"name": "shop", "declared_users": 1000},
        "budget": {"epsilon": 8.0, "delta": 1e-5},
        "run": {"epsilon": 4.0, "delta": 5e-6},
        # Everyone in every step: the noise of that is solved in a fraction of the time.
        "privacy": {"sample_rate": 1.0},
    }
    for name, section in sections.items():
        data[name] = {**data.get(name, {}), **section}
    return TenantFile.model_validate(data)


@pytest.fixture
def make_card(card_data: Callable[..., dict[str, Any]]) -> Callable[..., FederationCard]:
    def make(**sections: Any) -> FederationCard:
        training = {"rounds": 10, "local_steps": 5, **sections.pop("training", {})}
        return FederationCard.model_validate(card_data(training=training, **sections))

    return make


def test_training_and_evaluation_each_have_the_whole_share(make_card: Callable[..., FederationCard]) -> None:
    plan = plan_segment(make_card(evaluation={"when": "every-round"}), _tenant())
    assert (plan.local_steps, plan.cap_steps, plan.cap_tables) == (5, 50, 11)
    train = compose([plan.train_event] * 10, plan.delta).epsilon
    tables = compose([plan.table_event] * 11, plan.delta).epsilon
    assert 3.96 < train <= 4.0 and 3.96 < tables <= 4.0
    assert plan.train_event.noise_multiplier == pytest.approx(0.999 * plan.noise_multiplier)
    assert plan.table_event.sample_rate == 1.0


def test_spare_rounds_are_paid_for_by_noise_and_not_by_epsilon(make_card: Callable[..., FederationCard]) -> None:
    plain = plan_segment(make_card(), _tenant())
    spare = plan_segment(make_card(), _tenant(run={"spare_rounds": 4}))
    assert spare.cap_steps == 70 and spare.noise_multiplier > plain.noise_multiplier
    assert compose([spare.train_event] * 14, spare.delta).epsilon <= 4.0
    assert spare.evaluation_noise_multiplier == plain.evaluation_noise_multiplier


def test_the_plan_is_a_function_of_card_and_tenant_file(make_card: Callable[..., FederationCard]) -> None:
    assert plan_segment(make_card(), _tenant()) == plan_segment(make_card(), _tenant())


@pytest.mark.parametrize(
    "change",
    [
        {"run": {"epsilon": 3.9}},
        {"run": {"delta": 4e-6}},
        {"run": {"spare_rounds": 1}},
        {"privacy": {"clip_norm": 0.9}},
        {"privacy": {"sample_rate": 0.9}},
        {"privacy": {"records_per_user": 5}},
    ],
)
def test_an_edited_policy_is_another_segment(make_card: Callable[..., FederationCard], change: dict[str, Any]) -> None:
    assert plan_segment(make_card(), _tenant()).settings != plan_segment(make_card(), _tenant(**change)).settings


def test_another_card_is_another_segment(make_card: Callable[..., FederationCard]) -> None:
    other = make_card(training={"learning_rate": 0.02})
    assert plan_segment(make_card(), _tenant()).settings != plan_segment(other, _tenant()).settings


def test_a_promise_weaker_than_the_card_allows_is_refused_naming_both(
    make_card: Callable[..., FederationCard],
) -> None:
    with pytest.raises(PolicyRefusal, match=r"run\.epsilon=4 .*max_epsilon=3.5"):
        plan_segment(make_card(max_epsilon=3.5), _tenant())
    plan_segment(make_card(max_epsilon=4.0), _tenant())


@pytest.mark.parametrize(
    "change", [{"noise_multiplier": 0.0}, {"evaluation_noise_multiplier": float("nan")}, {"epsilon": float("inf")}]
)
def test_a_plan_without_a_promise_cannot_be_made(
    make_card: Callable[..., FederationCard], change: dict[str, float]
) -> None:
    plan = plan_segment(make_card(), _tenant())
    with pytest.raises(ConfigError):
        SegmentPlan(**{**vars(plan), **change})
