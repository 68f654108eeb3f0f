"""The adapters on the published files: counts, who a user is, what is left out, group values, and no leak.

Boosted trees over a card's own columns must reach what they are known to reach over the published ones, and no more: a
column lost would lower it, a leak would raise it.
"""

from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupShuffleSplit
from transformers import AutoTokenizer

from fedprofile.common.card import FederationCard, load_card
from fedprofile.common.errors import ConfigError, DataError
from fedprofile.common.features import encode_features
from fedprofile.common.interactions import encode
from fedprofile.common.tenant import load_tenant_file
from fedprofile.simulations.datasets import DATASETS, TenantRows, load_dataset
from fedprofile.simulations.scenarios import CARDS, CONFIGS, load_scenario
from fedprofile.simulations.tenants import people_at_several, read_tenants

DATA = Path(__file__).parents[3] / "shared" / "data"
REAL = [name for name in DATASETS if not name.startswith("movielens")]

HERE = [
    pytest.mark.data,
    pytest.mark.skipif(not DATA.is_dir(), reason="the real data sets are not beside the repository"),
]


def with_data(test: Any) -> Any:
    """Marks a test that reads the real data sets."""
    for mark in HERE:
        test = mark(test)
    return test


@cache
def _tenants(name: str, tenant: str | None = None) -> list[TenantRows]:
    return list(load_dataset(name, DATA, {"tenant": tenant} if tenant else {}))


@cache
def _table(name: str, tenant: str | None = None) -> pd.DataFrame:
    """All labelled rows, with a column that names the tenant."""
    return pd.concat(
        [pd.DataFrame(one.rows, columns=list(one.columns)).assign(at=one.name) for one in _tenants(name, tenant)],
        ignore_index=True,
    )


def _card(name: str) -> FederationCard:
    return load_scenario(name, DATA, 0).card


# Every adapter.


@pytest.mark.parametrize("name", DATASETS)
def test_what_is_declared_is_what_the_scenario_keeps_out(name: str) -> None:
    folder, adapter = CONFIGS / CARDS[name], DATASETS[name]
    card, file = load_card(folder / "federation.toml"), load_tenant_file(folder / "tenant.toml")
    kept_out = {*([file.columns.group] if file.columns.group else []), *file.columns.protected}
    assert kept_out == set(adapter.groups)
    assert not (card.history.columns | card.features.columns) & {*adapter.groups, *adapter.left_out}
    assert (card.task.group is None) == (not adapter.groups)
    assert adapter.user and all(adapter.left_out.values())


@with_data
@pytest.mark.parametrize("name", REAL)
def test_tenants_hold_no_column_that_is_left_out_and_no_label_that_is_not_the_cards(name: str) -> None:
    card = _card(name)
    for tenant in _tenants(name):
        assert not {*tenant.columns, *tenant.event_columns} & set(DATASETS[name].left_out)
        assert {row[-1] for row in tenant.rows} <= set(card.task.labels)
    if card.task.group is not None:
        assert set(_table(name)[card.task.group.attribute]) == set(card.task.group.values)
    for feature in card.features.categorical:
        unlisted = ~_table(name)[feature.name].isin(feature.values)
        assert set(_table(name)[feature.name][unlisted]) <= {"", "0", "FALSE"}


@with_data
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("credit-default", {"tenant": "limit"}),
        ("vehicle-coupon", {}),
        ("vehicle-coupon", {"tenant": "occupation"}),
        ("clinc150", {}),
        ("oulad", {}),
        ("oulad", {"tenant": "code_module"}),
    ],
)
def test_the_deployed_reader_reads_and_encodes_tenants(name: str, options: dict[str, Any], tiny_base: Path) -> None:
    scenario = load_scenario(name, DATA, 0, options)
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    few = replace(scenario, tenants=(scenario.tenants[-1], scenario.tenants[-2]))
    for tenant, rows in zip(read_tenants(few, split_seed=0), _loaded(name, options, few.tenants), strict=True):
        records = encode(tenant.examples, scenario.card, tokenizer)
        assert (tenant.name, len(records), len(records.users)) == (rows.name, len(rows.rows), rows.users)
        assert np.isfinite(records.features).all() and (records.labels >= 0).all()
        assert max(map(len, records.tokens)) <= scenario.card.history.max_tokens
        assert set(tenant.groups) == set(records.users)
        assert all(set(values) == set(DATASETS[name].groups) for values in tenant.groups.values())
        if scenario.card.history.event:
            assert np.mean([len(example.events) > 0 for example in tenant.examples]) > 0.5


def _loaded(name: str, options: dict[str, Any], chosen: Any) -> list[TenantRows]:
    by_name = {tenant.name: tenant for tenant in _tenants(name, options.get("tenant"))}
    return [by_name[tenant.name] for tenant in chosen]


@with_data
@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("credit-default", 0.770, 0.795), ("vehicle-coupon", 0.71, 0.77), ("online-shoppers", 0.755, 0.785)],
)
def test_boosted_trees_over_the_cards_columns_reach_what_is_known(name: str, low: float, high: float) -> None:
    card, table = _card(name), _table(name).copy()
    for feature in card.features.numeric:
        table[feature.name] = pd.to_numeric(table[feature.name])
    inputs = encode_features(table.to_dict("records"), card.features)  # type: ignore[arg-type]
    labels = (table.iloc[:, -2] == card.task.labels[1]).to_numpy()
    train, test = next(GroupShuffleSplit(1, test_size=0.2, random_state=0).split(inputs, labels, table.iloc[:, 0]))
    model = HistGradientBoostingClassifier(random_state=0).fit(inputs[train], labels[train])
    assert low < roc_auc_score(labels[test], model.predict_proba(inputs[test])[:, 1]) < high


@with_data
def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    for name in DATASETS:
        with pytest.raises(DataError, match=r"is not in it; download"):
            load_dataset(name, tmp_path)
        with pytest.raises(ConfigError, match=r"data\.options: unknown key 'tenants'"):
            load_dataset(name, DATA, {"tenants": "x"})
    with pytest.raises(ConfigError, match="'tenant'"):
        load_dataset("vehicle-coupon", DATA, {"tenant": "gender"})
    for name, file in (("credit-default", "credit-card-clients.csv"), ("oulad", "studentInfo.csv")):
        (tmp_path / file).write_text("a,b\n1,2\n")
        if name == "oulad":
            for other in ("studentAssessment.csv", "assessments.csv", "courses.csv"):
                (tmp_path / other).write_text("a,b\n1,2\n")
        with pytest.raises(DataError, match="has not the columns of"):
            load_dataset(name, tmp_path)
    (tmp_path / "data_full.json").write_text('{"train": [["hello", "greeting"]]}')
    (tmp_path / "domains.json").write_text('{"small_talk": ["other"]}')
    with pytest.raises(DataError, match="is not CLINC150"):
        load_dataset("clinc150", tmp_path)


# credit-default.


@with_data
def test_credit_default() -> None:
    table = _table("credit-default")
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
    assert _tenants("credit-default", "limit")[0].users == 7673
    assert sum(tenant.users for tenant in _tenants("credit-default", "limit")) == 29_965


@with_data
def test_credit_defaults_months_go_from_april_to_september() -> None:
    first = _tenants("credit-default")[0]
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
    table = _table("vehicle-coupon")
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
    users = {tenant.name: tenant.users for tenant in _tenants("vehicle-coupon")}
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
        before.append((example.row["coupon"], scenario.card.task.labels[example.label]))
    assert people_at_several(read_tenants(replace(scenario, tenants=scenario.tenants[-3:]), split_seed=0)) == {}


@with_data
def test_vehicle_coupons_occupations_with_few_respondents_are_no_tenants() -> None:
    tenants = _tenants("vehicle-coupon", "occupation")
    assert len(tenants) == 10
    assert (tenants[0].name, tenants[0].users, tenants[-1].users) == ("occupation-unemployed", 87, 23)


# clinc150.


@with_data
def test_clinc150() -> None:
    table = _table("clinc150")
    assert len(table) == 22_500 - 1 == table["request"].nunique()
    assert not table.duplicated(["text", "intent"]).any()
    assert set(table["intent"]) == set(_card("clinc150").task.labels) and table["intent"].nunique() == 150
    assert (table.groupby("at")["intent"].nunique() == 15).all() and table["at"].nunique() == 10
    assert sorted(Counter(table["intent"]).values())[:2] == [149, 150]


# oulad.


@with_data
def test_oulad() -> None:
    table = _table("oulad")
    assert len(table) == 32_593
    assert table["student"].nunique() == 28_785
    assert table["at"].nunique() == 13 and len(_tenants("oulad", "code_module")) == 7
    assert (table["passed"] == "yes").mean() == pytest.approx(0.4720, abs=1e-4)
    rates = (table["passed"] == "yes").groupby(table["gender"]).mean()
    assert rates.to_dict() == pytest.approx({"F": 0.4844, "M": 0.4619}, abs=1e-4)
    assert "20-Oct" not in set(table["imd_band"]) and {"10-20%", "unknown"} < set(table["imd_band"])
    assert (table["imd_band"] == "10-20%").sum() == 3516
    assert (table.groupby("student")[["gender", "age_band", "disability", "imd_band"]].nunique() == 1).all(axis=None)
    assert (table.groupby("student")["at"].nunique() == 1).all()
    assert sum(len(tenant.events) for tenant in _tenants("oulad")) == 173_912 - 173


@with_data
def test_oulads_modules_share_students() -> None:
    found = _table("oulad", "code_module").groupby("student")["at"].nunique()
    assert (found > 1).sum() > 1000


@with_data
def test_oulad_knows_no_mark_that_came_later() -> None:
    raw = pd.read_csv(DATA / "oulad" / "studentAssessment.csv").dropna(subset=["score"])
    raw = raw.merge(pd.read_csv(DATA / "oulad" / "assessments.csv"), on="id_assessment")
    raw = raw.merge(pd.read_csv(DATA / "oulad" / "courses.csv"), on=["code_module", "code_presentation"])
    before = raw[raw["date_submitted"] < (raw["module_presentation_length"] // 4)]
    table = _table("oulad")
    assert table["marks"].astype(int).sum() == len(before)
    # One enrolment by hand: student 11391 of AAA 2013J, 268 days long, handed in on days 18, 53, 115, ...
    mine = table[(table["student"] == "student-11391")].iloc[0]
    assert (mine["marks"], mine["mean_mark"], mine["time"], mine["passed"]) == ("2", "81.50", "2013-12-07", "yes")
    scenario = load_scenario("oulad", DATA, 0)
    chosen = tuple(tenant for tenant in scenario.tenants if tenant.name == mine["at"])
    examples = read_tenants(replace(scenario, tenants=chosen), split_seed=0)[0].examples
    example = next(example for example in examples if example.user == "student-11391")
    assert [event["score"] for event in example.events] == [78.0, 85.0]
