"""`worth`: four ways beside each other on the tenant's own evaluation users, and a plain word on what to use."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from tests.client.test_commands import Home, card, home, joined_folder, visits  # noqa: F401

from fedprofile.client.agreement import read_agreed
from fedprofile.client.received import AdapterFolder
from fedprofile.client.site import load_model
from fedprofile.client.worth import COLUMNS, FEDERATION, NO_MODEL, OWN_DATA, Worth, judge
from fedprofile.common.estimates import Interval
from fedprofile.common.interactions import EncodedRecords
from fedprofile.common.tasks import BinaryTask, MulticlassTask

BINARY = BinaryTask(kind="binary", labels=("no", "yes"))
TOPICS = MulticlassTask(kind="multiclass", labels=("a", "b", "c"))


def _records(user: list[int], labels: list[int]) -> EncodedRecords:
    count = len(user)
    return EncodedRecords(
        users=tuple(f"u{number}" for number in range(max(user) + 1)),
        user=np.array(user),
        tokens=[np.array([1], np.int32)] * count,
        features=np.zeros((count, 0), np.float32),
        labels=np.array(labels),
        groups=np.zeros(count, np.int64),
    )


def _scores(positive: np.ndarray) -> np.ndarray:
    return np.stack([1 - positive, positive], axis=1)


def test_areas_are_scikit_learns_and_a_gain_is_paired() -> None:
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, 300)
    good, poor = labels + draw.normal(0, 0.8, 300), labels + draw.normal(0, 3.0, 300)
    scores = {NO_MODEL: _scores(np.full(300, 0.5)), OWN_DATA: _scores(poor), FEDERATION: _scores(good)}
    found = judge(_records(list(range(300)), labels.tolist()), scores, BINARY, 7)
    assert found.measure == "AUC" and found.users == 300 and found.round == 7
    for name, positive in ((OWN_DATA, poor), (FEDERATION, good)):
        assert found.ways[name].value == pytest.approx(roc_auc_score(labels, positive))
        assert found.ways[name].low < found.ways[name].value < found.ways[name].high
    assert found.ways[NO_MODEL].value == 0.5 == found.ways[NO_MODEL].low == found.ways[NO_MODEL].high
    assert found.gains[OWN_DATA].low > 0 and "Use the federation's adapter" in found.advice
    # The same scores twice differ by nothing in every resample: the two are judged on the same users.
    twice = judge(_records(list(range(300)), labels.tolist()), scores | {OWN_DATA: scores[FEDERATION]}, BINARY, 7)
    assert twice.gains[OWN_DATA] == Interval(0.0, 0.0, 0.0) and "simpler" in twice.advice


def test_a_user_weighs_the_same_however_many_records_there_are() -> None:
    labels, user = [0, 1, 1, 1, 1], [0, 1, 2, 2, 2]
    right = np.array([[0.9, 0.1, 0.0], [0.1, 0.9, 0.0], *[[0.9, 0.1, 0.0]] * 3])
    found = judge(_records(user, labels), {NO_MODEL: right, OWN_DATA: right, FEDERATION: right}, TOPICS, 1)
    assert found.measure == "accuracy"
    assert found.ways[FEDERATION].value == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("own", "gain", "above_none", "told"),
    [
        (0.70, (0.05, 0.01, 0.09), (0.25, 0.2, 0.3), "Use the federation's adapter: it is better than own data"),
        (0.80, (-0.05, -0.09, -0.01), (0.25, 0.2, 0.3), "Use own data: the federation is worse by 0.050"),
        (0.75, (0.0, -0.04, 0.04), (0.25, 0.2, 0.3), "no difference to the federation is seen"),
        (0.50, (0.01, -0.04, 0.06), (0.01, -0.04, 0.06), "Use none of them"),
    ],
)
def test_the_advice_follows_from_the_intervals(
    own: float, gain: tuple[float, float, float], above_none: tuple[float, float, float], told: str
) -> None:
    ways = {NO_MODEL: Interval(0.5, 0.5, 0.5), OWN_DATA: Interval(own, own - 0.05, own + 0.05)}
    ways[FEDERATION] = Interval(own + gain[0], 0, 1)
    found = Worth("AUC", 100, 3, ways, {NO_MODEL: Interval(*above_none), OWN_DATA: Interval(*gain)})
    assert told in found.advice


def _people(users: int) -> str:
    """The column `visits` tells the label; the text tells nothing."""
    draw = random.Random(1)
    lines = [visits(0).rstrip("\n")]
    for user in range(users):
        count = draw.choice([0, 1, 2, 7, 8, 9])
        lines.append(f"u{user},2026-01-01,w1,viewed,shoes,{count},phone,north,{'yes' if count > 5 else 'no'}")
    return "\n".join(lines) + "\n"


def test_a_real_directory_is_judged_and_nothing_of_it_changes(home: Home) -> None:  # noqa: F811
    home.joined()
    agreed, _ = read_agreed(home.place)
    code, _, err = home.run("worth", "--dir", str(home.root))
    assert code == 2 and "no adapter has come yet" in err
    model, _ = load_model(agreed, home.place.read_tenant_file(), home.root)
    arrays = model.initial_arrays()
    # An adapter that takes the column the wrong way round.
    arrays["head.weight"][1, model.hidden_size] = -5.0
    AdapterFolder(home.place, agreed.hash).keep(arrays, 2)
    code, _, err = home.run("worth", "--dir", str(home.root))
    assert code == 2 and "evaluation users with a label" in err and "say nothing" in err
    (home.root / "visits.csv").write_text(_people(200))
    before = {path: path.read_bytes() for path in _files(home.root.parent)}
    code, out, err = home.run("worth", "--dir", str(home.root), "--json")
    assert code == 0, err
    assert {path: path.read_bytes() for path in _files(home.root.parent)} == before
    found = json.loads(out)
    value = {name: way["value"] for name, way in found["ways"].items()}
    assert list(value) == [NO_MODEL, OWN_DATA, COLUMNS, FEDERATION]
    assert value[NO_MODEL] == 0.5 and value[OWN_DATA] > 0.99 and value[FEDERATION] < 0.01
    assert 30 < found["users"] < 90 and found["round"] == 2
    assert found["advice"].startswith("Use own data: the federation is worse")
    text = home.run("worth", "--dir", str(home.root))[1]
    assert "covered by no epsilon" in text and "own data" in text


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix not in ("-shm", "-wal"))
