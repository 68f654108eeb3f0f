"""From finished cells to a report: the known truth beside what was measured, and people at several tenants."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tests.simulations.conftest import WriteExperiment

from fedprofile.common.errors import ConfigError
from fedprofile.simulations.analysis import _facts, check_conditions
from fedprofile.simulations.cells import read_scenario
from fedprofile.simulations.experiment import load_experiment
from fedprofile.simulations.known_spec import KnownSpec
from fedprofile.simulations.known_truth import bayes_gaps
from fedprofile.simulations.sweep import run_experiment

DATA = Path(__file__).parents[3] / "shared" / "data"


def _run(path: Path, out: Path) -> pd.DataFrame:
    run_experiment(load_experiment(path), out=out, resume=False, jobs=1, json_output=False, command="the command")
    return pd.read_parquet(out / "results.parquet")


def _card(base: dict[str, Any]) -> dict[str, Any]:
    return {"training": {"rounds": 1, "local_steps": 2}, "base": base, "adapter": {"rank": 2, "top_layers": 1}}


def test_the_known_truth_stands_beside_what_was_measured(write_experiment: WriteExperiment, tmp_path: Path) -> None:
    base = load_experiment(write_experiment()).card["base"]
    options: dict[str, Any] = {"tenants": 4, "users": 2000}
    path = write_experiment(
        data={"dataset": "known", "options": options, "limit": 500},
        partition={"kind": "natural"},
        card=_card(base),
        sweep={"epsilon": [float("inf"), 3.0], "seed": [0, 1]},
        also=[{"arm": ["alone", "pooled"], "epsilon": [3.0], "seed": [0]}],
    )
    results = _run(path, tmp_path / "out")
    assert set(results["arm"]) == {"federated", "alone", "pooled", "bayes"}
    gaps = bayes_gaps(KnownSpec(**options))
    for column in ("gender", "region"):
        [row] = results.query(
            "arm == 'bayes' and kind == 'level' and scope == 'gap' and metric == 'demographic_parity'"
            f" and statistic == 'difference' and column == '{column}'"
        ).to_dict("records")
        truth = gaps[column]["demographic_parity_difference"]
        assert row["low"] - 0.05 <= truth <= row["high"] + 0.05 and row["seeds"] == 2
    # Nothing learnt on a random base is better than the rule that made the labels.
    auc = results.query("kind == 'level' and scope == 'overall' and metric == 'auc'").set_index(["arm", "epsilon"])
    assert auc["value"]["bayes"].iloc[0] == auc["value"].max()
    page = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "the command" in page and "closed form" in page and "outside every ledger" not in page
    settings = json.loads((tmp_path / "out" / "experiment.json").read_text())
    assert settings["also"] == [{"arm": ["alone", "pooled"], "epsilon": [3.0], "seed": [0]}]
    # No noise is "inf", as one sets it, and not null; and what is replaced is not the scenario's any more.
    assert settings["sweep"]["epsilon"] == ["inf", 3.0]
    assert '| sweep.epsilon | ["inf", 3.0] |' in page
    assert "| card.training.rounds | 1 |" in page and "scenario: training.rounds" not in page
    assert "scenario: training.optimizer" in page and not list((tmp_path / "out").glob("*.part"))


def test_arms_with_a_varied_setting_are_told_apart_and_the_same_cell_twice_is_refused(
    write_experiment: WriteExperiment,
) -> None:
    arms = ["federated", "alone", "pooled"]
    for varied in ({"card.training.rounds": [1, 2]}, {"card.aggregation.strategy": ["fedavg", "fedadam"]}):
        experiment = load_experiment(write_experiment(sweep={"arm": arms, **varied, "seed": [0, 1]}))
        check_conditions(experiment.cells(), read_scenario(experiment.data))
    again = [{"arm": ["federated"], "epsilon": [3.0]}]
    experiment = load_experiment(write_experiment(sweep={"epsilon": [3.0]}, also=again))
    with pytest.raises(ConfigError, match=r"cells 'epsilon-3\.0' and 'arm-federated_epsilon-3\.0' are the same one"):
        check_conditions(experiment.cells(), read_scenario(experiment.data))


@pytest.mark.skipif(not (DATA / "vehicle_coupon").is_dir(), reason="shared/data is not here")
def test_people_at_several_tenants_are_told_what_they_lose_in_all(
    write_experiment: WriteExperiment, tmp_path: Path
) -> None:
    base = load_experiment(write_experiment()).card["base"]
    path = write_experiment(
        data={"dataset": "vehicle-coupon", "data_dir": str(DATA), "limit": 200},
        partition={"kind": "natural"},
        card=_card(base) | {"history": {"max_tokens": 48}},
        sweep={"epsilon": [1.0], "seed": [0]},
    )
    _run(path, tmp_path / "out")
    [cell] = [json.loads(file.read_text()) for file in (tmp_path / "out" / "cells").glob("*.json")]
    largest = max(tenant["spent"]["epsilon"] for tenant in cell["tenants"])
    by_tenants = {each["tenants"]: each for each in cell["people"]}
    assert min(by_tenants) >= 2 and max(by_tenants) <= 5 and sum(each["people"] or 0 for each in cell["people"]) > 50
    counts = [
        n
        for of in [cell["picture"]["labels"], *cell["picture"]["groups"].values()]
        for t in of.values()
        for n in t.values()
    ]
    assert None in counts and min(count for count in counts if count is not None) >= 20
    composed = {count: each["loss"]["epsilon"] for count, each in by_tenants.items()}
    for count, epsilon in composed.items():
        # Composed events cost more than one tenant's, and less than the sum of all.
        assert largest < epsilon < count * largest
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "outside every ledger" in page and f"{composed[max(composed)]:.2g}"[:3] in page


@pytest.mark.parametrize("largest", [0, 1])
def test_facts_keep_the_most_that_anybody_lost_and_say_what_thresholds_were_fitted_to(
    write_experiment: WriteExperiment, largest: int
) -> None:
    path = write_experiment(mitigation={"kind": "thresholds"}, sweep={"epsilon": [3.0], "seed": [0, 1]})
    experiment = load_experiment(path)
    outcomes = []
    for place, cell in enumerate(experiment.cells()):
        loss = {"epsilon": 9.0 if place == largest else 5.0, "delta": 1e-5, "unit": "person"}
        result: dict[str, Any] = {
            "tenants": [],
            "people": [{"tenants": 2, "people": 40, "loss": loss}],
            "picture": {"labels": {}, "groups": {}},
            "timing": dict.fromkeys(("prepare_s", "fill_s", "federation_s"), 0.0),
            "machine": dict.fromkeys(("torch", "transformers", "peft", "opacus", "flwr"), "1"),
        }
        outcomes.append((cell, result, pd.DataFrame()))
    found = _facts(experiment, read_scenario(experiment.data), outcomes, "")
    assert [each.loss.epsilon for each in found.composed] == [9.0]
    assert any("fitted to the noised tables of the users that they are then judged on" in one for one in found.caveats)
