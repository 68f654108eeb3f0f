"""The life of an adapter at a tenant: versions, one in use, judged before it is used; and a tenant that leaves."""

import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity
from sklearn.metrics import log_loss
from tests.client.test_commands import Home, card, home, joined_folder, visits  # noqa: F401
from tests.client.test_worth import _people

from fedprofile.client.acceptance import user_losses
from fedprofile.client.agreement import read_agreed, read_agreement
from fedprofile.client.outbox import Outbox
from fedprofile.client.received import AdapterFolder
from fedprofile.client.records import ExampleSource
from fedprofile.client.site import load_model, open_site
from fedprofile.common.adapters import Layout
from fedprofile.common.errors import ConfigError
from fedprofile.common.interactions import EncodedRecords
from fedprofile.common.messages import Arrays, Kind, Request, content_of, reply_of
from fedprofile.common.tasks import BinaryTask, MultilabelTask, RankingTask, RegressionTask
from fedprofile.common.tenant import AdaptersSpec
from fedprofile.simulations.randomness import SeededRandomness

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


def test_a_choice_is_of_one_adapter_and_not_of_a_rounds_number(here: Home) -> None:
    folder = _folder(here)
    folder.keep(_arrays(1.0), 1)
    folder.use(1)
    # A server that restarts may send another one of the same round.
    folder.keep(_arrays(1.5), 1)
    assert folder.newest(LAYOUT)[1]["head.bias"].tolist() == [1.0, 1.0]
    assert folder.use(1).arrays_hash == folder.versions()[-1].arrays_hash
    other = AdapterFolder(here.place, "d" * 64)
    with pytest.raises(ConfigError, match="no adapter has come yet"):
        other.require()
    for number in (1, 2):
        other.keep(_arrays(number + 5.0), number)
    assert other.require().round == 2, "what was chosen of another card says nothing of this one"


def test_what_comes_while_a_person_chooses_is_neither_lost_nor_half_read(here: Home) -> None:
    """`start`, a person's commands and a reader at the same time, as threads over the same files."""
    folder, errors, read = _folder(here, keep=2), list[BaseException](), list[tuple[int, float]]()
    folder.keep(_arrays(1), 1)
    over = threading.Event()

    def until_over(step: Callable[[], object]) -> threading.Thread:
        def run() -> None:
            try:
                while not over.is_set():
                    step()
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def choose() -> None:
        folder.use(folder.versions()[0].round)
        folder.mark(folder.versions()[0], "taken")
        folder.use(None)

    def look() -> None:
        number, arrays = folder.newest(LAYOUT)
        read.append((number, float(arrays["head.bias"][0])))

    def attempt(step: Callable[[], object]) -> Callable[[], object]:
        def run() -> None:
            try:
                step()
            except ConfigError as error:
                # Two looks at a list that is two rounds on: said as an error, never answered with another adapter.
                assert "choose another one" in str(error) or "no adapter of that round" in str(error)

        return run

    threads = [until_over(attempt(choose)), until_over(attempt(look))]
    for number in range(2, 150):
        folder.keep(_arrays(number), number, final=number == 149)
        assert here.place.read_versions().versions[-1].round == number, "what came is on the list"
    over.set()
    for thread in threads:
        thread.join()
    assert not errors and read and all(number == value for number, value in read)
    assert folder.has_final() and folder.require().round == 149


def test_no_answer_to_the_server_depends_on_which_adapter_is_used(here: Home, tmp_path: Path) -> None:
    """The same directory with another choice, another setting, and a choice that cannot even be read."""
    agreed, _ = read_agreed(here.place)
    model, _ = load_model(agreed, here.place.read_tenant_file(), here.root)
    sent = {name: array + np.float32(0.25) for name, array in model.initial_arrays().items()}
    folder = AdapterFolder(here.place, agreed.hash)
    folder.keep(model.initial_arrays(), 1)
    whole = tmp_path / "whole"
    shutil.copytree(here.root, whole / "shop")
    shutil.copytree(here.ledger.parent, whole / "populations")

    def answers(change: Callable[[], object]) -> list[tuple[object, ...]]:
        for path, kept in ((here.root, "shop"), (here.ledger.parent, "populations")):
            shutil.rmtree(path)
            shutil.copytree(whole / kept, path)
        change()
        agreement = read_agreement(here.place)
        source = ExampleSource(agreement.tenant, agreement.card, here.root)
        site = open_site(here.place, agreement, source, lambda line: None, registry=None)
        site.app._make_randomness = lambda: SeededRandomness(7)
        found: list[tuple[object, ...]] = []
        try:
            for kind in (Kind.TRAIN, Kind.EVALUATE, Kind.DELIVER):
                asked = _asked(agreed.hash, kind, sent)
                reply = site.answer(asked)
                assert reply.has_content()
                site.sent(asked, reply)
                decoded = reply_of(reply)
                arrays = {name: array.tobytes() for name, array in decoded.arrays.items()}
                found.append((decoded.kind, decoded.round, decoded.ledger.sequence, arrays))
        finally:
            site.close()
        came = [(one.round, one.final, one.arrays_hash) for one in here.place.read_versions().versions]
        return [*found, (site.over, came, sorted(path.name for path in here.place.adapters.glob("round-*")))]

    def judged() -> None:
        [version] = folder.versions()
        folder.mark(version, "worse")
        folder.use(1)

    plain = answers(lambda: None)
    assert plain[-1][0] is True and len(plain) == 4
    assert answers(judged) == plain
    assert answers(lambda: here.edit("[policy]", '[adapters]\naccept = "not-worse"\n[policy]')) == plain
    assert answers(lambda: (here.place.adapters / "choice.json").write_bytes(b"\xff no JSON")) == plain


def test_who_stops_start_does_not_wait_for_a_judgement(here: Home) -> None:
    """A real process whose server is away, with an adapter that waits."""
    here.edit("[policy]", '[adapters]\naccept = "not-worse"\n[policy]')
    _folder(here, accept="not-worse").keep(_arrays(1), 1)
    command = [str(Path(sys.executable).parent / "flower-client"), "start", "--dir", str(here.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("ready"):
                break
        process.send_signal(signal.SIGTERM)
        told = process.stdout.read()
    assert process.returncode == 0 and "stopped; start again to go on." in told and "round 1" not in told
    assert [version.state for version in _folder(here).versions()] == ["waiting"]


def _asked(card_hash: str, kind: Kind, arrays: Arrays) -> Message:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    message = Message(content_of(Request(kind, card_hash, 2, arrays)), dst_node_id=5, message_type=kind.value)
    message.metadata.__dict__["_message_id"] = f"message-{kind.value}"
    return message


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
    # An adapter that says nothing of one person must not pass for want of a comparison.
    broken = np.where((user == 1)[:, None], np.nan, both)
    silent = user_losses(broken, records(labels), task)
    assert silent[1] > 20 and silent[[0, 2]] == pytest.approx([expected[0], expected[2]])
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


def test_leaving_stops_at_a_link_before_anything_is_gone(here: Home, tmp_path: Path) -> None:
    """Such as a cache on a larger disk, which may hold what is not the client's."""
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "other").write_text("x")
    if here.place.cache.exists():
        here.place.cache.rmdir()
    here.place.cache.symlink_to(tmp_path / "large")
    code, _, said = here.run("leave", "--dir", str(here.root), "--yes")
    assert code == 2 and "cache: is a link; delete what it leads to" in said
    assert here.place.key.exists() and (tmp_path / "large" / "other").exists()


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
