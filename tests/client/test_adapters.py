"""The life of an adapter at a tenant: versions, one in use, judged before it is used; and a tenant that leaves."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import log_loss
from tests.client.test_commands import Home, card, home, joined_folder, visits  # noqa: F401
from tests.client.test_worth import _people

from fedprofile.client.acceptance import user_losses
from fedprofile.client.agreement import read_agreed
from fedprofile.client.outbox import Outbox
from fedprofile.client.received import AdapterFolder
from fedprofile.client.site import load_model
from fedprofile.common.adapters import Layout
from fedprofile.common.errors import ConfigError
from fedprofile.common.interactions import EncodedRecords
from fedprofile.common.messages import Arrays
from fedprofile.common.tasks import BinaryTask, MultilabelTask, RankingTask, RegressionTask
from fedprofile.common.tenant import AdaptersSpec

LAYOUT: Layout = {"head.bias": ((2,), "float32")}


def _arrays(value: float) -> Arrays:
    return {"head.bias": np.full(2, value, np.float32)}


def _folder(home: Home, **spec: Any) -> AdapterFolder:  # noqa: F811
    return AdapterFolder(home.place, home.card.hash, AdaptersSpec(**spec))


@pytest.fixture
def here(home: Home) -> Home:  # noqa: F811
    home.joined()
    return home


def test_the_newest_is_in_use_and_a_few_older_ones_are_kept(here: Home) -> None:
    folder = _folder(here, keep=3)
    for number in range(1, 7):
        folder.keep(_arrays(number), number)
    assert [version.round for version in folder.versions()] == [4, 5, 6]
    assert sorted(path.name for path in here.place.adapters.glob("*.safetensors")) == [
        f"round-000{number}.safetensors" for number in (4, 5, 6)
    ]
    assert folder.newest(LAYOUT)[0] == 6
    folder.keep(_arrays(3.0), 3)
    folder.keep(_arrays(0.0), 0)
    assert folder.require().round == 6


def test_rolling_back_is_one_step_and_holds_while_others_come(here: Home) -> None:
    folder = _folder(here, keep=2)
    for number in (1, 2):
        folder.keep(_arrays(number), number)
    assert folder.use(1).round == 1
    for number in (3, 4, 5):
        folder.keep(_arrays(number), number, final=number == 5)
    # What is in use is never deleted, however many come.
    assert [version.round for version in folder.versions()] == [1, 4, 5]
    assert folder.newest(LAYOUT)[1]["head.bias"].tolist() == [1.0, 1.0] and folder.has_final()
    assert folder.use(None).round == 5
    folder.keep(_arrays(6), 6)
    assert folder.require().round == 6 and [version.round for version in folder.versions()] == [5, 6]


def test_what_was_changed_on_the_disk_is_not_used(here: Home) -> None:
    folder = _folder(here)
    for number in (1, 2):
        folder.keep(_arrays(number), number)
    path = here.place.adapters / "round-0001.safetensors"
    path.write_bytes((here.place.adapters / "round-0002.safetensors").read_bytes())
    with pytest.raises(ConfigError, match="is not the adapter that was received"):
        folder.use(1)
    assert folder.require().round == 2
    with pytest.raises(ConfigError, match=r"no adapter of that round is kept; there are those of: 1, 2"):
        folder.use(7)


def test_an_adapter_that_waits_is_not_used(here: Home) -> None:
    folder = _folder(here, accept="not-worse")
    folder.keep(_arrays(1), 1)
    with pytest.raises(ConfigError, match="flower-client adapters --judge"):
        folder.require()
    folder.mark(folder.versions()[0], "taken")
    folder.keep(_arrays(2), 2)
    assert folder.require().round == 1
    folder.mark(folder.versions()[1], "worse")
    assert folder.require().round == 1
    # A person's own choice goes before a judgement.
    assert folder.use(2).round == 2
    # The same adapter as the run's result keeps what was said of it.
    folder.keep(_arrays(2), 2, final=True)
    assert folder.versions()[1].state == "worse" and folder.has_final()


def test_the_command_lists_and_chooses(here: Home) -> None:
    code, out, _ = here.run("adapters", "--dir", str(here.root))
    assert code == 0 and out == "No adapter has come yet.\n"
    folder = _folder(here)
    for number in (1, 2):
        folder.keep(_arrays(number), number)
    code, out, _ = here.run("adapters", "--dir", str(here.root), "--use", "1", "--json")
    found = json.loads(out)
    assert code == 0 and [(row["round"], row["in_use"], row["state"]) for row in found] == [
        (1, True, "taken"),
        (2, False, "taken"),
    ]
    assert found[0]["arrays_hash"] == folder.versions()[0].arrays_hash
    assert here.run("adapters", "--dir", str(here.root), "--use", "newest")[0] == 0 and folder.require().round == 2
    code, _, said = here.run("adapters", "--dir", str(here.root), "--use", "last")
    assert code == 2 and "is not a round's number" in said


def test_a_worse_adapter_is_flagged_and_a_better_one_taken(here: Home) -> None:
    """The label of these people hangs on a column: an adapter that takes it the wrong way round is worse."""
    here.edit("[population]", '[adapters]\naccept = "not-worse"\n\n[population]')
    (here.root / "visits.csv").write_text(_people(300))
    tenant, (agreed, _) = here.place.read_tenant_file(), read_agreed(here.place)
    assert tenant.adapters.accept == "not-worse"
    folder = AdapterFolder(here.place, agreed.hash, tenant.adapters)
    model, _ = load_model(agreed, tenant, here.root)
    for number, weight in ((1, 3.0), (2, -5.0), (3, 4.0)):
        arrays = model.initial_arrays()
        arrays["head.weight"][1, model.hidden_size] = weight
        arrays["head.bias"][1] = -weight / 2
        folder.keep(arrays, number)
    before = here.place.versions.read_bytes()
    code, out, said = here.run("adapters", "--judge", "--dir", str(here.root), "--json")
    assert code == 0, said
    assert "round 1 is taken" in said and "from the untrained start" in said
    assert "round 2 is WORSE, and not used" in said and "from the one after round 1" in said
    assert "round 3 is taken" in said
    assert [(row["state"], row["in_use"]) for row in json.loads(out)] == [
        ("taken", False),
        ("worse", False),
        ("taken", True),
    ]
    assert here.place.versions.read_bytes() != before
    assert here.run("adapters", "--judge", "--dir", str(here.root))[2] == ""


def test_losses_are_scikit_learns_and_every_user_weighs_the_same() -> None:
    draw = np.random.default_rng(0)
    user = np.array([0, 0, 0, 1, 2, 2])

    def records(labels: np.ndarray) -> EncodedRecords:
        return EncodedRecords(("a", "b", "c"), user, [], np.zeros((6, 0), np.float32), labels, np.zeros(6, np.int64))

    labels = np.array([0, 1, 1, 0, 1, 0])
    positive = draw.uniform(0.1, 0.9, 6)
    both = np.stack([1 - positive, positive], axis=1)
    task = BinaryTask(kind="binary", labels=("no", "yes"))
    expected = [log_loss(labels[user == one], positive[user == one], labels=[0, 1]) for one in range(3)]
    assert user_losses(both, records(labels), task) == pytest.approx(expected)
    ranking = RankingTask.model_validate({"kind": "ranking", "candidates": list("abc"), "negatives": 1, "cutoff": 1})
    assert user_losses(positive[:, None], records(labels), ranking) == pytest.approx(expected)
    several = MultilabelTask(kind="multilabel", labels=("x", "y"))
    pair = np.stack([positive, positive], axis=1)
    assert user_losses(pair, records(labels * 3), several) == pytest.approx(expected)
    price = RegressionTask.model_validate({"kind": "regression", "target": "price", "low": 0, "high": 1})
    squares = [np.mean((positive[user == one] - labels[user == one]) ** 2) for one in range(3)]
    assert user_losses(positive[:, None], records(labels.astype(float)), price) == pytest.approx(squares)


@pytest.mark.parametrize("keep", [True, False])
def test_leaving_deletes_what_is_not_needed_and_the_ledger_stays(here: Home, keep: bool) -> None:
    _folder(here).keep(_arrays(1), 1)
    for name in ("cache", "journal", "outbox", "snapshot"):
        (here.root / name).mkdir(exist_ok=True)
        (here.root / name / "data").write_text("x")
    Outbox(here.place.outbox)
    (here.root / "node.json").write_text("{}")
    spent = here.ledger.read_bytes()
    code, _, said = here.run("leave", "--dir", str(here.root))
    assert code == 2 and "leave asks on a terminal; give --yes" in said and here.place.key.exists()
    options = ["--keep-adapters"] if keep else []
    code, out, said = here.run("leave", "--dir", str(here.root), "--yes", *options, "--json")
    found = json.loads(out)
    assert code == 0, said
    assert {"key", "node.json", "journal", "outbox", "cache", "snapshot"} <= set(found["removed"])
    assert ("adapters" in found["removed"]) == (not keep) == (not here.place.adapters.exists())
    assert here.ledger.read_bytes() == spent and Path(found["ledger"]) == here.ledger.resolve()
    assert here.place.tenant_file.exists() and here.place.card.exists()
    code, _, said = here.run("start", "--dir", str(here.root))
    assert code == 2 and "key" in said
    # Once more there is nothing left to do.
    code, out, _ = here.run("leave", "--dir", str(here.root), "--yes", *options, "--json")
    assert code == 0 and json.loads(out)["removed"] == []


def test_nobody_leaves_while_start_runs(here: Home) -> None:
    with here.place.running():
        code, _, said = here.run("leave", "--dir", str(here.root), "--yes")
    assert code == 2 and "already runs on this directory" in said and here.place.key.exists()


def test_coming_back_goes_on_from_what_was_spent(here: Home) -> None:
    """The life's budget has room for two runs' shares: the third one is refused, whoever left in between."""
    for name, expected in (("second", 0), ("third", 3)):
        assert here.run("leave", "--dir", str(here.root), "--yes")[0] == 0
        assert here.run("join", str(here.invite(name=name)), "--dir", str(here.root))[0] == 0
        code, _, said = here.run("join", "--dir", str(here.root), "--yes")
        assert code == expected, said
    assert "life" in said
