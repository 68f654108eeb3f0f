"""What holds for every adapter: what is left out stays out, and the deployed reader reads what is written.

Boosted trees over a card's own columns must reach what they are known to reach over the published ones, and no more: a
column lost would lower it, a leak would raise it.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupShuffleSplit
from tests.simulations.published import DATA, published_table, published_tenants, with_data
from transformers import AutoTokenizer

from fedprofile.common.card import FederationCard, load_card
from fedprofile.common.errors import ConfigError, DataError
from fedprofile.common.features import encode_features
from fedprofile.common.interactions import encode
from fedprofile.common.tenant import load_tenant_file
from fedprofile.simulations.datasets import DATASETS, TenantRows, load_dataset
from fedprofile.simulations.scenarios import CARDS, CONFIGS, load_scenario
from fedprofile.simulations.tenants import read_tenants

REAL = [name for name in DATASETS if not name.startswith("movielens")]


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
    for tenant in published_tenants(name):
        assert not {*tenant.columns, *tenant.event_columns} & set(DATASETS[name].left_out)
        assert {row[-1] for row in tenant.rows} <= set(card.task.outputs)
    if card.task.group is not None:
        assert set(published_table(name)[card.task.group.attribute]) == set(card.task.group.values)
    for feature in card.features.categorical:
        unlisted = ~published_table(name)[feature.name].isin(feature.values)
        assert set(published_table(name)[feature.name][unlisted]) <= {"", "0", "FALSE"}


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
    by_name = {tenant.name: tenant for tenant in published_tenants(name, options.get("tenant"))}
    return [by_name[tenant.name] for tenant in chosen]


@with_data
@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("credit-default", 0.770, 0.795), ("vehicle-coupon", 0.71, 0.77), ("online-shoppers", 0.755, 0.785)],
)
def test_boosted_trees_over_the_cards_columns_reach_what_is_known(name: str, low: float, high: float) -> None:
    card, table = _card(name), published_table(name).copy()
    for feature in card.features.numeric:
        table[feature.name] = pd.to_numeric(table[feature.name])
    inputs = encode_features(table.to_dict("records"), card.features)  # type: ignore[arg-type]
    labels = (table.iloc[:, -2] == card.task.outputs[1]).to_numpy()
    train, test = next(GroupShuffleSplit(1, test_size=0.2, random_state=0).split(inputs, labels, table.iloc[:, 0]))
    model = HistGradientBoostingClassifier(random_state=0).fit(inputs[train], labels[train])
    assert low < roc_auc_score(labels[test], model.predict_proba(inputs[test])[:, 1]) < high


@with_data
def test_oulad_as_a_regression_asks_for_marks_that_are_not_yet_known() -> None:
    tenants = load_dataset("oulad", DATA, {"task": "regression"})
    everyone = {
        tenant.name: pd.DataFrame(tenant.rows, columns=tenant.columns) for tenant in load_dataset("oulad", DATA, {})
    }
    enrolments = 0
    for tenant in tenants:
        visits = pd.DataFrame(tenant.rows, columns=tenant.columns)
        events = pd.DataFrame(tenant.events, columns=tenant.event_columns).astype({"score": float})
        assert visits.columns[-1] == "later_mark" and "passed" not in visits.columns
        visits["later_mark"] = visits["later_mark"].astype(float)
        assert visits["later_mark"].between(0, 100).all()
        # Marks name the module and not the presentation: only those enrolled once in it can be told apart.
        enrolled = everyone[tenant.name].groupby(["student", "code_module"]).size().rename("times").reset_index()
        once = visits.merge(enrolled[enrolled["times"] == 1], on=["student", "code_module"])
        joined = events.merge(once[["student", "code_module", "time", "later_mark"]], on=["student", "code_module"])
        later = joined[joined["time_x"] >= joined["time_y"]].groupby(["student", "code_module"])
        assert np.allclose(later["score"].mean(), later["later_mark"].first(), atol=0.006)
        enrolments += len(visits)
    assert 15_000 < enrolments < 32_593


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
