"""Every scenario of configs/scenarios: its files fit together, its README is true, and its experiment runs."""

import json
import re
from pathlib import Path

import pytest
from tests.simulations.published import DATA, with_data
from tests.simulations.test_movielens import write_100k

from fedprofile.client.judgement import Judgement
from fedprofile.common.card import load_card
from fedprofile.common.errors import ConfigError
from fedprofile.common.modeling.base import hash_base
from fedprofile.common.tenant import load_tenant_file
from fedprofile.simulations.datasets import DATASETS
from fedprofile.simulations.demo import run_demo
from fedprofile.simulations.experiment import load_experiment
from fedprofile.simulations.scenarios import CARDS, CONFIGS, is_generated
from fedprofile.simulations.sweep import run_experiment

SCENARIOS = sorted(path.parent.name for path in CONFIGS.glob("*/experiment.toml"))
ROOT = CONFIGS.parents[1]


def test_all_seven_are_there() -> None:
    assert SCENARIOS == [
        "advertising-response",
        "credit-risk",
        "customer-service",
        "education",
        "health-risk",
        "purchase-intention",
        "recommendation",
    ]


@pytest.mark.parametrize("name", SCENARIOS)
def test_its_files_fit_together(name: str) -> None:
    folder = CONFIGS / name
    card, tenant = load_card(folder / "federation.toml"), load_tenant_file(folder / "tenant.toml")
    experiment = load_experiment(folder / "experiment.toml")
    assert card.name == experiment.name == name == CARDS[experiment.data.dataset]
    assert tenant.run.epsilon <= card.max_epsilon
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert f"simulate.py configs/scenarios/{name}/experiment.toml" in page
    assert f"demo --dataset {experiment.data.dataset}" in page
    for file in re.findall(r"`([a-z_/-]+\.(?:toml|csv|py))`", page):
        assert any((place / file).exists() for place in (folder, ROOT)) or file == "review.csv", file
    if tenant.judgement is not None:
        replies = "replies.csv" if (folder / "replies.csv").exists() else None
        spec = tenant.judgement.model_copy(update={"replies": replies and Path(replies)})
        assert Judgement.of(spec, card, folder).replies.keys() <= set(card.task.outputs)


def test_the_mark_is_the_regression_of_education() -> None:
    experiment = load_experiment(CONFIGS / "education" / "mark.toml")
    data = experiment.data
    assert CARDS[data.dataset] == "education"
    assert DATASETS[data.dataset].scenario_of(data.options) == experiment.name == "education-mark"
    outcome = load_experiment(CONFIGS / "education" / "experiment.toml")
    assert (experiment.sweep, experiment.also, data.limit) == (outcome.sweep, outcome.also, outcome.data.limit)


@pytest.mark.parametrize("name", SCENARIOS)
def test_it_runs(name: str, tiny_base: Path, tmp_path: Path) -> None:
    """A round with few users over a tiny base; recommendation on generated files of MovieLens' format."""
    data, path = DATA, CONFIGS / name / "experiment.toml"
    generated = is_generated(load_experiment(path).data.dataset)
    if name == "recommendation":
        data = tmp_path / "data"
        data.mkdir()
        write_100k(data / "ml-100k")
    elif not generated and not DATA.is_dir():
        pytest.skip("the real data sets are not beside the repository")
    base = hash_base(tiny_base, "example/tiny-bert", "main")
    overrides = [
        "sweep.epsilon=[3.0]",
        "sweep.split_seed=[1]",
        "also=[]",
        "data.limit=30",
        f"data.data_dir={data}",
        "card.training.rounds=1",
        "card.adapter.rank=2",
        "card.history.max_tokens=32",
        f"engine.base={tiny_base}",
        *(f"card.base.{key}={value}" for key, value in base.model_dump().items()),
    ]
    run_experiment(load_experiment(path, overrides), out=tmp_path / "out", resume=False, jobs=1, json_output=False)
    [cell] = [json.loads(file.read_text()) for file in (tmp_path / "out" / "cells").glob("*.json")]
    assert cell["rounds"] == 1 and cell["dropped"] == cell["refused"] == 0
    assert len(cell["tenants"]) >= 2
    assert all(0 < tenant["spent"]["epsilon"] <= 3.01 for tenant in cell["tenants"])
    assert "Findings" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


@with_data
def test_a_comparison_of_areas_is_refused_where_there_is_no_area(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="of binary tasks; this one is multiclass"):
        run_demo(
            out=tmp_path / "out",
            dataset="clinc150",
            data_dir=DATA,
            epsilon=None,
            rounds=None,
            seed=0,
            split_seed=None,
            compare=True,
            json_output=False,
        )
    assert not (tmp_path / "out").exists()
