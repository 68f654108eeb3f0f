"""Each adapter on the published files: counts, who a user is, group values, histories, known rates."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
from tests.simulations.published import DATA, published_table, published_tenants, with_data

from fedprofile.simulations.datasets import DATASETS
from fedprofile.simulations.scenarios import load_scenario
from fedprofile.simulations.tenants import people_at_several, read_tenants

# credit-default.


@with_data
def test_credit_default() -> None:
    table = published_table("credit-default")
    assert len(table) == 30_000 - 35 == table["client"].nunique()
    assert Counter(table["at"]) == {
        "education-university": 14019,
        "education-graduate-school": 10563,
        "education-high-school": 4915,
        "education-other": 468,
    }
    assert (table["defaulted"] == "yes").mean() == pytest.approx(0.2213, abs=1e-4)
    rates = (table["defaulted"] == "yes").groupby(table["SEX"]).mean()
    assert rates["male"] - rates["female"] == pytest.approx(0.034, abs=0.001)
    assert set(table["AGE"]) == {"<=29", "30-39", "40-49", "50-59", ">59"}
    assert set(table["MARRIAGE"]) == {"married", "single", "other"}
    assert set(table["EDUCATION"]) == {"university", "graduate school", "high school", "other"}
    assert published_tenants("credit-default", "limit")[0].users == 7673
    assert sum(tenant.users for tenant in published_tenants("credit-default", "limit")) == 29_965


@with_data
def test_credit_defaults_months_go_from_april_to_september() -> None:
    first = published_tenants("credit-default")[0]
    row = dict(zip(first.columns, first.rows[0], strict=True))
    codes = [row[name] for name in ("PAY_6", "PAY_5", "PAY_4", "PAY_3", "PAY_2", "PAY_0")]
    assert codes == ["-2", "-2", "-1", "-1", "2", "2"]
    months = sorted(event[1:] for event in first.events if event[0] == row["client"])
    assert [month for _, month, _ in months] == ["April", "May", "June", "July", "August", "September"]
    assert [status for *_, status in months] == ["no use"] * 2 + ["paid duly"] * 2 + ["2 months late"] * 2
    assert max(time for time, *_ in months) < row["time"]


# vehicle-coupon.


@with_data
def test_vehicle_coupon_has_587_respondents_each_with_one_profile() -> None:
    table = published_table("vehicle-coupon")
    assert len(table) == 12_684 - 74
    assert table["respondent"].nunique() == 587
    assert (table["answer"] == "accepted").mean() == pytest.approx(0.5676, abs=1e-4)
    profile = [*DATASETS["vehicle-coupon"].groups, "education", "Bar", "CoffeeHouse", "CarryAway"]
    assert (table.groupby("respondent")[profile].nunique() == 1).all(axis=None)
    rates = (table["answer"] == "accepted").groupby(table["gender"]).mean()
    assert rates.to_dict() == pytest.approx({"Female": 0.5465, "Male": 0.5898}, abs=1e-4)
    assert table["age"].nunique() == 8 and table["income"].nunique() == 9 and table["occupation"].nunique() == 25


@with_data
def test_vehicle_coupons_respondents_are_at_several_tenants_under_one_id() -> None:
    users = {tenant.name: tenant.users for tenant in published_tenants("vehicle-coupon")}
    assert users == {
        "coupon-bar": 585,
        "coupon-carry-out-and-take-away": 579,
        "coupon-coffee-house": 584,
        "coupon-restaurant-20-50": 558,
        "coupon-restaurant-below-20": 585,
    }
    tenants = read_tenants(load_scenario("vehicle-coupon", DATA, 0), split_seed=0)
    assert Counter(map(len, people_at_several(tenants).values()))[5] > 530
    values: dict[str, Any] = {}
    sides: dict[str, bool] = {}
    for tenant in tenants:
        for user, groups in tenant.groups.items():
            assert values.setdefault(user, groups) == groups
            assert sides.setdefault(user, tenant.evaluation_user(user)) == tenant.evaluation_user(user)
    assert len(values) == 587


@with_data
def test_vehicle_coupons_history_is_what_the_respondent_answered_before() -> None:
    scenario = load_scenario("vehicle-coupon", DATA, 0, {"tenant": "occupation"})
    tenant = read_tenants(replace(scenario, tenants=scenario.tenants[-1:]), split_seed=0)[0]
    limit = scenario.card.history.max_events
    seen: dict[str, list[tuple[Any, str]]] = {}
    for example in tenant.examples:
        before = seen.setdefault(example.user, [])
        assert [(event["coupon"], event["answer"]) for event in example.events] == before[-limit:]
        before.append((example.row["coupon"], scenario.card.task.outputs[int(example.label)]))
    assert people_at_several(read_tenants(replace(scenario, tenants=scenario.tenants[-3:]), split_seed=0)) == {}


@with_data
def test_vehicle_coupons_occupations_with_few_respondents_are_no_tenants() -> None:
    tenants = published_tenants("vehicle-coupon", "occupation")
    assert len(tenants) == 10
    assert (tenants[0].name, tenants[0].users, tenants[-1].users) == ("occupation-unemployed", 87, 23)


# clinc150.


@with_data
def test_clinc150() -> None:
    table = published_table("clinc150")
    assert len(table) == 22_500 - 1 == table["request"].nunique()
    assert not table.duplicated(["text", "intent"]).any()
    assert (
        set(table["intent"]) == set(load_scenario("clinc150", DATA, 0).card.task.outputs)
        and table["intent"].nunique() == 150
    )
    assert (table.groupby("at")["intent"].nunique() == 15).all() and table["at"].nunique() == 10
    assert sorted(Counter(table["intent"]).values())[:2] == [149, 150]


# oulad.


@with_data
def test_oulad() -> None:
    table = published_table("oulad")
    assert len(table) == 32_593
    assert table["student"].nunique() == 28_785
    assert table["at"].nunique() == 13 and len(published_tenants("oulad", "code_module")) == 7
    assert (table["passed"] == "yes").mean() == pytest.approx(0.4720, abs=1e-4)
    rates = (table["passed"] == "yes").groupby(table["gender"]).mean()
    assert rates.to_dict() == pytest.approx({"F": 0.4844, "M": 0.4619}, abs=1e-4)
    assert "20-Oct" not in set(table["imd_band"]) and {"10-20%", "unknown"} < set(table["imd_band"])
    assert (table["imd_band"] == "10-20%").sum() == 3516
    assert (table.groupby("student")[["gender", "age_band", "disability", "imd_band"]].nunique() == 1).all(axis=None)
    assert (table.groupby("student")["at"].nunique() == 1).all()
    assert sum(len(tenant.events) for tenant in published_tenants("oulad")) == 173_912 - 173


@with_data
def test_oulads_modules_share_students() -> None:
    found = published_table("oulad", "code_module").groupby("student")["at"].nunique()
    assert (found > 1).sum() > 1000


@with_data
def test_oulad_knows_no_mark_that_came_later() -> None:
    raw = pd.read_csv(DATA / "oulad" / "studentAssessment.csv").dropna(subset=["score"])
    raw = raw.merge(pd.read_csv(DATA / "oulad" / "assessments.csv"), on="id_assessment")
    raw = raw.merge(pd.read_csv(DATA / "oulad" / "courses.csv"), on=["code_module", "code_presentation"])
    before = raw[raw["date_submitted"] < (raw["module_presentation_length"] // 4)]
    table = published_table("oulad")
    assert table["marks"].astype(int).sum() == len(before)
    # One enrolment by hand: student 11391 of AAA 2013J, 268 days long, handed in on days 18, 53, 115, ...
    mine = table[(table["student"] == "student-11391")].iloc[0]
    assert (mine["marks"], mine["mean_mark"], mine["time"], mine["passed"]) == ("2", "81.50", "2013-12-07", "yes")
    scenario = load_scenario("oulad", DATA, 0)
    chosen = tuple(tenant for tenant in scenario.tenants if tenant.name == mine["at"])
    examples = read_tenants(replace(scenario, tenants=chosen), split_seed=0)[0].examples
    example = next(example for example in examples if example.user == "student-11391")
    assert [event["score"] for event in example.events] == [78.0, 85.0]
