"""What an experiment's file may say, and which cells it makes."""

import math
from pathlib import Path

import pytest

from fedprofile.common.errors import ConfigError
from fedprofile.simulations.experiment import Experiment, load_experiment


def _experiment(text: str, tmp_path: Path, *overrides: str) -> Experiment:
    path = tmp_path / "experiment.toml"
    path.write_text(text, encoding="utf-8")
    return load_experiment(path, overrides)


SWEEP = """
name = "two-by-three"
[card.training]
rounds = 4
[partition]
kind = "dirichlet"
[sweep]
"partition.alpha" = [0.1, 1.0]
epsilon = [inf, 8.0, 3.0]
"""


def test_cells_are_all_combinations_in_order(tmp_path: Path) -> None:
    cells = _experiment(SWEEP, tmp_path).cells()
    assert [(cell.partition.alpha, cell.epsilon, cell.noise) for cell in cells] == [
        *[(0.1, None, False), (0.1, 8.0, True), (0.1, 3.0, True)],
        *[(1.0, None, False), (1.0, 8.0, True), (1.0, 3.0, True)],
    ]
    assert cells[0].settings == {"partition.alpha": 0.1, "epsilon": math.inf}
    assert [cell.name for cell in cells][:2] == ["alpha-0.1_epsilon-inf", "alpha-0.1_epsilon-8.0"]
    assert {cell.partition.kind for cell in cells} == {"dirichlet"}
    assert all(cell.card == {"training": {"rounds": 4}} for cell in cells)


def test_an_experiment_without_a_sweep_is_one_cell(tmp_path: Path) -> None:
    [cell] = _experiment('name = "one"\n', tmp_path).cells()
    assert (cell.name, cell.seed, cell.noise, cell.epsilon) == ("only", 0, True, None)


def test_a_swept_key_reaches_card_and_tenant(tmp_path: Path) -> None:
    text = (
        'name = "deep"\n[card.training]\nrounds = 4\n[sweep]\n"card.aggregation.strategy" = ["fedavg", "fedadam"]\n'
        '"tenant.privacy.sample_rate" = [0.1]\nseed = [5]\n'
    )
    cells = _experiment(text, tmp_path).cells()
    assert [cell.card for cell in cells] == [
        {"training": {"rounds": 4}, "aggregation": {"strategy": name}} for name in ("fedavg", "fedadam")
    ]
    assert cells[1].tenant == {"privacy": {"sample_rate": 0.1}}
    assert cells[1].name == "strategy-fedadam_sample-rate-0.1_seed-5"


def test_overrides_replace_what_the_file_says(tmp_path: Path) -> None:
    experiment = _experiment(
        SWEEP,
        tmp_path,
        "card.training.rounds=9",
        "engine.cache=none",
        "sweep.partition.alpha=[2.0]",
        "sweep.seed=[1,2]",
    )
    cells = experiment.cells()
    assert len(cells) == 1 * 3 * 2
    assert {cell.partition.alpha for cell in cells} == {2.0}
    assert cells[0].card == {"training": {"rounds": 9}}
    assert experiment.engine.cache == "none"
    assert len(_experiment(SWEEP, tmp_path, "sweep={seed=[1,2]}").cells()) == 2


@pytest.mark.parametrize(
    ("text", "overrides", "said"),
    [
        ('name = "x"\n[engin]\n', [], "did you mean 'engine'"),
        ('name = "x"\n[engine]\ncash = "full"\n', [], "did you mean 'cache'"),
        ('name = "x"\n[partition]\nkind = "label"\n', [], "partition.kind"),
        ('name = "x"\n', ["epsilon"], "is not key=value"),
        ('name = "x"\n', ["name.first=1"], "'name' has no settings of its own"),
        ('name = "x"\n[sweep]\nepsilon = []\n', [], "sweep.epsilon"),
    ],
)
def test_what_cannot_be_used_is_named(text: str, overrides: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")):
        _experiment(text, tmp_path, *overrides)


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        ("rounds = [1]", "'rounds' cannot be varied"),
        ('"engine.cache" = ["full"]', "'engine.cache' cannot be varied"),
        ("epsilon = [3.0, 3.0]", "the same cell twice"),
        ("epsilon = [-1.0]", "epsilon"),
        ('"partition.tenants" = [0]', "tenants"),
    ],
)
def test_a_sweep_over_what_cannot_be_varied_is_refused(sweep: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        _experiment(f'name = "x"\n[sweep]\n{sweep}\n', tmp_path).cells()
