"""Labels of every kind from the tenant's cells: what fits, and what is said of what does not."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedprofile.client.cells import CellError
from fedprofile.client.labels import label_reader
from fedprofile.client.sources import read_examples, read_usable
from fedprofile.common.card import FederationCard
from fedprofile.common.errors import DataError
from fedprofile.common.tasks import MultilabelTask, RankingTask, RegressionTask
from fedprofile.common.tenant import TenantFile

RATING = {"kind": "regression", "target": "rating", "low": 1, "high": 5}


def _tenant(**columns: Any) -> TenantFile:
    return TenantFile.model_validate(
        {
            "source": {"kind": "csv", "path": "data.csv"},
            "columns": {"user": "who", "label": "rated", **columns},
            "population": {"name": "p", "declared_users": 10},
            "budget": {"epsilon": 1.0},
            "run": {"epsilon": 1.0},
        }
    )


@pytest.fixture
def card(card_data: Callable[..., dict[str, Any]]) -> FederationCard:
    data = card_data(history={"record": "{item}", "event": ""}, features={"numeric": [], "categorical": []})
    return FederationCard.model_validate({**data, "task": RATING})


def _write(folder: Path, cells: list[str]) -> None:
    lines = [f"u{number},shoes,{cell}" for number, cell in enumerate(cells)]
    (folder / "data.csv").write_text("\n".join(["who,item,rated", *lines]) + "\n")


@pytest.mark.parametrize(("cell", "label"), [("1", 0.0), (" 3.0 ", 0.5), (4, 0.75), (5.0, 1.0), ("-7", 0.0), (99, 1.0)])
def test_a_target_is_a_number_clipped_and_scaled(cell: Any, label: float) -> None:
    assert label_reader(RegressionTask.model_validate(RATING))(cell) == label


@pytest.mark.parametrize("cell", ["", None, "five", "inf", math.nan, True, [3]])
def test_what_is_no_target(cell: Any) -> None:
    with pytest.raises(CellError):
        label_reader(RegressionTask.model_validate(RATING))(cell)


GENRES = MultilabelTask.model_validate({"kind": "multilabel", "labels": ["drama", "comedy", "war"]})
FILMS = RankingTask.model_validate({"kind": "ranking", "candidates": ["Alien", "Dune"], "negatives": 1, "cutoff": 1})


@pytest.mark.parametrize(
    ("cell", "label"),
    [("drama", 1), (" war ; comedy", 6), (["war", "war"], 4), (("drama", "war"), 5), ("", 0), ([], 0)],
)
def test_any_of_several_labels(cell: Any, label: int) -> None:
    assert label_reader(GENRES)(cell) == label


@pytest.mark.parametrize("cell", [None, math.nan, "secret", "drama;", "drama,war", ["drama", "secret"], [1], [None]])
def test_what_is_no_set_of_labels(cell: Any) -> None:
    with pytest.raises(CellError) as caught:
        label_reader(GENRES)(cell)
    assert "secret" not in str(caught.value)


def test_the_chosen_candidate() -> None:
    assert [label_reader(FILMS)(cell) for cell in ("Alien", " Dune ")] == [0, 1]
    with pytest.raises(CellError, match=r"is not one of the card's candidates \(Alien, Dune\)"):
        label_reader(FILMS)("secret")


def test_targets_of_a_source(tmp_path: Path, card: FederationCard) -> None:
    _write(tmp_path, ["1", "4", "1000"])
    assert [example.label for example in read_examples(_tenant(), card, tmp_path)] == [0.0, 0.75, 1.0]
    assert [example.label for example in read_examples(_tenant(), card, tmp_path, labelled=False)] == [-1] * 3


def test_a_bad_target_is_named_by_line_and_column_and_leaves_out_its_user_alone(
    tmp_path: Path, card: FederationCard
) -> None:
    _write(tmp_path, ["2", "secret", ""])
    with pytest.raises(DataError) as caught:
        read_examples(_tenant(), card, tmp_path)
    assert "line 3, column 'rated': is not a finite number" in str(caught.value)
    assert "line 4, column 'rated': is empty" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert [example.user for example in read_usable(_tenant(), card, tmp_path).examples] == ["u0"]
