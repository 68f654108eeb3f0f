"""The commands over a real directory with the tiny base: join, check, start, budget, predict, and bad input."""

import hashlib
import json
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from flwr.app import Message
from flwr.proto.fleet_pb2 import PullMessagesResponse
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.task_identity import TaskIdentity
from tests.client.terminal import on_a_terminal

from fedprofile.client.agreement import card_text, read_agreement
from fedprofile.client.cli import app
from fedprofile.client.directory import TenantDirectory, populations_folder, write_model
from fedprofile.client.enrolment import make_key, read_key
from fedprofile.client.journal import Journal
from fedprofile.client.received import AdapterFolder
from fedprofile.client.records import ExampleSource
from fedprofile.client.registry import Registry
from fedprofile.client.remaining import is_over
from fedprofile.client.snapshot import Snapshot
from fedprofile.client.tenant_template import tenant_template
from fedprofile.common.adapters import arrays_hash
from fedprofile.common.card import FederationCard
from fedprofile.common.cli import run_command
from fedprofile.common.enrolment import Enrolment, Invite, file_text, read_exchanged
from fedprofile.common.interactions import Example
from fedprofile.common.messages import TABLE, Arrays, Kind, LedgerMark, Request, content_of, refusal_of, reply_of
from fedprofile.common.tenant import TenantFile
from fedprofile.server.certificates import new_authority

if TYPE_CHECKING:
    from tests.client.conftest import SuperLink

    from fedprofile.client.site import Site

CardData = Callable[..., dict[str, Any]]

CA = new_authority("test").certificate_pem().decode()

TENANT = """
[source]
kind = "csv"
path = "visits.csv"
[columns]
user = "visitor"
time = "time"
label = "bought"
group = "region"
[population]
name = "shop"
declared_users = 50
ledger = "../populations/shop.sqlite"
[budget]
epsilon = 8.0
delta = 1e-4
[run]
epsilon = 4.0
delta = 5e-5
[privacy]
sample_rate = 0.5
evaluation_users = 0.3
[policy]
reply_every = 0.25
[base]
path = "{base}"
"""


class Home:
    """A tenant's directory and the commands on it, in this process."""

    def __init__(
        self, root: Path, card: FederationCard, base: Path, template: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.root, self.card, self.base, self.template, self.capsys = root, card, base, template, capsys
        self.place = TenantDirectory(root)
        self.ledger = root.parent / "populations" / "shop.sqlite"

    def run(self, *arguments: str) -> tuple[int, str, str]:
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run_command(app, "flower-client", arguments)
        said = self.capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, said.out, said.err

    def invite(self, **card: Any) -> Path:
        chosen = self.card if not card else FederationCard.model_validate({**self.card.model_dump(mode="json"), **card})
        path = self.root.parent / "shop.invite"
        path.write_text(file_text(invite_for(chosen)))
        return path

    def edit(self, old: str = "", new: str = "") -> None:
        self.place.tenant_file.write_text(TENANT.format(base=self.base).replace(old, new))

    def write_data(self) -> None:
        (self.root / "visits.csv").write_text(visits())

    def joined(self, address: str = "localhost:1", ca: str = CA) -> None:
        """As after a join: a copy of a directory that has really joined."""
        shutil.copytree(self.template, self.root)
        shutil.copytree(self.template.parent / "populations", self.ledger.parent)
        if address != "localhost:1":
            make_key(self.place.key)  # A server takes a key only once.
        write_model(self.place.invite, invite_for(self.card, address, ca))


def invite_for(card: FederationCard, address: str = "localhost:1", ca: str = CA) -> Invite:
    return Invite(tenant="shop", address=address, ca=ca, card=card.canonical().decode(), card_hash=card.hash)


def visits(users: int = 40) -> str:
    draw = random.Random(0)
    lines = ["visitor,time,month,action,item,visits,device,region,bought"]
    for user in range(users):
        for day in (1, 2, 3):
            bought, region = draw.choice(["no", "yes"]), draw.choice(["north", "south"])
            item = "shoes" if bought == "yes" else "books"
            lines.append(f"u{user},2026-01-0{day},w1,viewed,{item},{draw.randint(0, 9)},phone,{region},{bought}")
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def card(card_data: CardData) -> FederationCard:
    return FederationCard.model_validate(card_data())


@pytest.fixture(scope="module")
def joined_folder(card: FederationCard, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory on which both calls of `join` were made; one for the module, because each costs seconds."""
    folder = tmp_path_factory.mktemp("joined")
    root = folder / "shop"
    (folder / "shop.invite").write_text(file_text(invite_for(card)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        for arguments in ([str(folder / "shop.invite")], ["--yes"]):
            with pytest.raises(SystemExit) as ended:
                run_command(app, "flower-client", ["join", *arguments, "--dir", str(root)])
            assert ended.value.code == 0
            (root / "tenant.toml").write_text(TENANT.format(base=tiny_base))
            (root / "visits.csv").write_text(visits())
    return root


@pytest.fixture
def home(
    tmp_path: Path,
    card: FederationCard,
    tiny_base: Path,
    joined_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Home:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return Home(tmp_path / "shop", card, tiny_base, joined_folder, capsys)


def test_the_invite_gives_a_key_and_a_template(home: Home) -> None:
    code, out, _ = home.run("join", str(home.invite()), "--dir", str(home.root))
    assert code == 0
    assert "tenant.toml" in out
    assert home.place.key.stat().st_mode & 0o777 == 0o600
    assert home.root.stat().st_mode & 0o777 == 0o700
    template = home.place.tenant_file.read_text()
    assert "visits" in template and "phone, desk" in template and "north, south" in template
    home.write_data()
    for command in (["check"], ["join", "--yes"]):
        code, _, err = home.run(*command, "--dir", str(home.root))
        assert code == 2 and "population.name is empty; type a name for the users in this data" in err
    TenantFile.model_validate(tomllib.loads(template.replace('name = ""', 'name = "shop"')))
    key = home.place.key.read_bytes()
    home.place.tenant_file.write_text("# mine")
    assert home.run("join", str(home.invite()), "--dir", str(home.root))[0] == 0
    assert home.place.tenant_file.read_text() == "# mine"
    assert home.place.key.read_bytes() == key


def test_every_key_of_the_template_is_known(home: Home) -> None:
    """What is commented out must be right as well."""
    template = re.sub(r"^# (\w+ = |\[\w+\])", r"\1", tenant_template(home.card), flags=re.MULTILINE)
    parsed = tomllib.loads(template.replace("card_name", "visits").replace('name = ""', 'name = "shop"'))
    assert parsed["base"] == {"path": "model"}
    assert parsed["events"] == {"kind": "csv", "path": "events.csv"}
    assert {"spare_rounds", "delta"} <= set(parsed["run"]) and "until" in parsed["policy"]
    TenantFile.model_validate(parsed)


def test_joining(home: Home) -> None:
    home.joined()
    enrolment = read_exchanged(home.root / "shop.enroll", Enrolment)
    public = read_key(home.place.key).public_key()
    assert enrolment.verified_key() == public
    assert (enrolment.declared_users, enrolment.card_hash) == (50, home.card.hash)
    assert (enrolment.promise.epsilon, enrolment.promise.delta) == (4.0, 5e-5)
    # The real number of users (40) stays here, and so does everything else that has no field.
    fields = json.loads((home.root / "shop.enroll").read_text())
    assert set(fields) == {"format", "tenant", "public_key", "card_hash", "declared_users", "promise", "signature"}
    assert fields["declared_users"] == 50
    code, out, _ = home.run("budget", "--dir", str(home.root), "--json")
    assert code == 0
    ledger = json.loads(out)
    assert (ledger["epsilon"], ledger["left"], ledger["epsilon_spent"], ledger["releases"]) == (8.0, 4.0, 0.0, [])
    assert home.run("join", "--dir", str(home.root), "--yes")[0] == 0
    assert json.loads(home.run("budget", "--dir", str(home.root), "--json")[1])["left"] == 4.0


def test_check_shows_the_data_and_the_cost_and_writes_nothing(home: Home) -> None:
    home.run("join", str(home.invite()), "--dir", str(home.root))
    home.edit()
    home.write_data()
    before = sorted(path.name for path in home.root.rglob("*"))
    code, out, err = home.run("check", "--dir", str(home.root), "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["data"]["users"], found["data"]["records"]) == (40, 120)
    assert found["data"]["records_per_user"]["largest"] == 3
    assert found["cost"]["after_rounds"][-1]["rounds"] == 2
    assert found["cost"]["after_rounds"][-1]["epsilon"] <= 4.0
    assert {"delta", "unit", "adjacency", "accountant"} <= set(found["cost"]["after_rounds"][0])
    assert set(found["simpler"]) == {"use", "texts", "why"} and 0 < found["simpler"]["texts"] <= 120
    code, out, _ = home.run("check", "--dir", str(home.root))
    assert code == 0
    assert "viewed" not in out and "your users' data is shown on a terminal only" in out
    code, shown = on_a_terminal([Path(sys.executable).parent / "flower-client", "check", "--dir", home.root])
    assert code == 0, shown
    assert "viewed books" in shown or "viewed shoes" in shown
    assert "declared: 50" in out and "20 % off" in out
    assert any("####" in line for line in out.splitlines()), "history lengths are drawn"
    # Life's delta 1e-4 and epsilon 8 hold this run's 5e-5 and 4 twice.
    assert found["left_for_life"]["more_runs"] == 1 and found["left_for_life"]["epsilon"] == 4.0
    assert "1 more run like this one" in out
    assert f"  simpler ways     {found['simpler']['why']}" in out
    assert sorted(path.name for path in home.root.rglob("*")) == before


def test_a_changed_card_is_shown_as_a_difference_and_needs_a_new_agreement(home: Home) -> None:
    home.joined()
    training = {**home.card.training.model_dump(mode="json"), "local_steps": 3}
    home.run("join", str(home.invite(training=training)), "--dir", str(home.root))
    # Until the tenant agrees, the run that was agreed to and what it has brought stay usable.
    assert home.place.new_invite.exists() and read_agreement(home.place).card == home.card
    (home.root / "new.csv").write_text(visits())
    code, _, err = home.run("predict", "--dir", str(home.root), "--input", str(home.root / "new.csv"))
    assert code == 2 and "no adapter has come yet" in err
    home.run("join", str(home.invite()), "--dir", str(home.root))
    assert not home.place.new_invite.exists(), "the operator has taken it back"
    home.run("join", str(home.invite(training=training)), "--dir", str(home.root))
    code, out, err = home.run("join", "--dir", str(home.root), "--yes")
    assert code == 0, err
    assert f"The ledger of population 'shop' is {home.ledger}." in out
    agreed = read_agreement(home.place)
    assert agreed.card.training.local_steps == 3 and agreed.invite.card_hash == agreed.card.hash
    assert not home.place.new_invite.exists()
    assert "- training.local_steps = 2" in out and "+ training.local_steps = 3" in out
    assert "task.labels" not in out
    assert json.loads(home.run("budget", "--dir", str(home.root), "--json")[1])["left"] == 0.0
    # The life's budget is taken: another card is refused.
    training["local_steps"] = 4
    home.run("join", str(home.invite(training=training)), "--dir", str(home.root))
    code, _, err = home.run("join", "--dir", str(home.root), "--yes", "--json")
    assert code == 3
    assert json.loads(err)["code"] == 3 and "left" in json.loads(err)["error"]


def test_an_unchanged_card_is_said_to_be(home: Home) -> None:
    assert "unchanged" in card_text(home.card, home.card)
    assert "history.event" in card_text(home.card, None)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("sample_rate = 0.5", "sample_rate = 0.6", "privacy.sample_rate"),
        ("declared_users = 50", "declared_users = 60", "population.declared_users"),
        ("epsilon = 4.0", "epsilon = 5.0", "run.epsilon"),
        ('user = "visitor"', 'user = "device"', "columns.user is device, and visitor was frozen at join"),
        ("populations/shop", "populations/other", "population.ledger"),
        ("../populations/shop", "populations/shop", "population.ledger"),
        ("[policy]", "[polic]", "did you mean 'policy'?"),
        ("epsilon = 4.0", "epsilon = 4.0\nepsilom = 1", "unknown key 'run.epsilom'"),
    ],
)
def test_what_was_frozen_at_join_cannot_be_edited(home: Home, old: str, new: str, told: str) -> None:
    home.joined()
    home.edit(old, new)
    code, _, err = home.run("start", "--dir", str(home.root))
    assert code == 2
    assert told in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("visitor,time", "visitr,time", "column 'visitor' is missing"),
        ("2026-01-01", "01.01.2026", "line 2, column 'time'"),
        (",no\n", ",maybe\n", "column 'bought'"),
    ],
)
def test_bad_data_is_one_sentence_with_line_and_column_and_costs_nothing(
    home: Home, old: str, new: str, told: str
) -> None:
    home.run("join", str(home.invite()), "--dir", str(home.root))
    home.edit()
    home.write_data()
    path = home.root / "visits.csv"
    path.write_text(path.read_text().replace(old, new, 1))
    code, _, err = home.run("join", "--dir", str(home.root), "--yes")
    assert code == 2
    assert told in err
    assert "maybe" not in err and "01.01.2026" not in err
    assert not home.ledger.exists()
    assert not (home.root / "shop.enroll").exists()


def test_check_names_every_problem_and_shows_cells_on_a_terminal_only(home: Home) -> None:
    home.run("join", str(home.invite()), "--dir", str(home.root))
    home.edit()
    lines = visits().splitlines()
    wrong = [line.replace("2026-01-01", f"day {number}") for number, line in enumerate(lines)]
    (home.root / "visits.csv").write_text("\n".join(wrong) + "\n")
    command = ["check", "--dir", str(home.root)]
    code, out, err = home.run(*command)
    assert code == 2 and err.count("is not an ISO 8601") == 40 and "more" not in err and "day" not in err + out
    code, out, err = home.run(*command, "--values")
    assert code == 2 and "on a terminal only" in err and "day" not in err + out
    assert home.run(*command, "--values", "--json")[0] == 2
    code, shown = on_a_terminal([Path(sys.executable).parent / "flower-client", *command, "--values"])
    assert code == 2
    assert "line 2, column 'time': 'day 1'" in shown and "line 119, column 'time': 'day 118'" in shown
    assert shown.count("'day ") == 40


def test_cells_are_those_of_the_first_reading(home: Home) -> None:
    """A query without an order gives other rows when it is asked again, and a right cell would be shown."""
    home.run("join", str(home.invite()), "--dir", str(home.root))
    home.edit('kind = "csv"\npath = "visits.csv"', 'kind = "sql"\nurl = "sqlite:///visits.db"\nquery = "{query}"')
    query = "SELECT * FROM visits ORDER BY random()"
    home.place.tenant_file.write_text(home.place.tenant_file.read_text().replace("{query}", query))
    lines = [line.split(",") for line in visits().splitlines()]
    lines[7][8] = "perhaps"
    with closing(sqlite3.connect(home.root / "visits.db")) as database:
        database.execute(f"CREATE TABLE visits ({', '.join(lines[0])})")
        database.executemany(f"INSERT INTO visits VALUES ({', '.join('?' * 9)})", lines[1:])
        database.commit()
    command = ["check", "--dir", str(home.root), "--values"]
    code, shown = on_a_terminal([Path(sys.executable).parent / "flower-client", *command])
    assert code == 2 and "1 problem in the data; mend it and run `check` again" in shown
    assert "column 'bought': 'perhaps'" in shown


def test_what_nothing_would_come_of_is_said_by_check(home: Home) -> None:
    home.run("join", str(home.invite()), "--dir", str(home.root))
    home.write_data()
    home.edit("reply_every = 0.25", "reply_every = 0.25\nkinds = []")
    code, _, err = home.run("check", "--dir", str(home.root))
    assert code == 3 and "policy.kinds is empty: nothing would be answered" in err
    (home.root.parent / "file").touch()
    home.edit("../populations/shop.sqlite", "../file/shop.sqlite")
    code, _, err = home.run("check", "--dir", str(home.root))
    assert code == 2 and "no ledger can be written there" in err
    home.edit("reply_every = 0.25", 'reply_every = 0.25\nkinds = ["train", "deliver"]')
    assert "policy.kinds leaves out 'evaluate'" in home.run("check", "--dir", str(home.root))[1]
    assert "--yes" in home.run("join", "--dir", str(home.root))[2] and not home.ledger.exists()


def test_check_looks_at_delta_as_well(home: Home) -> None:
    home.joined()
    home.edit("epsilon = 4.0\ndelta = 5e-5", "epsilon = 1.0\ndelta = 9e-5")
    for command in (["check"], ["join", "--yes"]):
        code, _, err = home.run(*command, "--dir", str(home.root))
        assert code == 3 and "delta" in err and "left of population 'shop'" in err


def test_join_without_a_terminal_needs_yes(home: Home) -> None:
    home.run("join", str(home.invite()), "--dir", str(home.root))
    home.edit()
    home.write_data()
    command = [str(Path(sys.executable).parent / "flower-client"), "join", "--dir", str(home.root)]
    done = subprocess.run(command, input="y\n", capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "join asks on a terminal; give --yes where there is none" in done.stderr
    assert not home.ledger.exists()


def test_a_wrong_input_of_predict_is_said_to_be_one(home: Home) -> None:
    home.joined()
    AdapterFolder(home.place, home.card.hash).keep({"head.bias": np.zeros(2, np.float32)}, 1)
    rows = home.root / "new.csv"

    def told() -> str:
        code, _, err = home.run("predict", "--dir", str(home.root), "--input", str(rows))
        assert code == 2 and "tenant.toml" not in err and "check" not in err
        return err

    assert "cannot be read" in told() and "give a file with the rows to predict for" in told()
    lines = visits().splitlines()
    rows.write_text(f"{lines[0]}\n")
    assert "--input: there is no row" in told()
    rows.write_text(f"{lines[0]}\n{lines[1].replace('2026', 'x')}\n")
    assert "1 problem in the rows to predict for; mend it and run `predict` again" in told()
    rows.write_text("\n".join([lines[0], *(line.replace("2026", "x") for line in lines[1:])]))
    assert told().count("column 'time'") == 120
    rows.write_text(visits())
    home.write_data()
    before = (home.root / "visits.csv").read_bytes()
    for name, why in (("visits.csv", "is a source"), ("new.csv", "is there already"), ("key.csv/x.csv", "no folder")):
        command = ["predict", "--dir", str(home.root), "--input", str(rows), "--output", str(home.root / name)]
        code, _, err = home.run(*command)
        assert code == 2 and why in err
    assert (home.root / "visits.csv").read_bytes() == before


@pytest.mark.parametrize("sent", ["shop.enroll", "tenants.json"])
def test_another_file_is_not_taken_for_an_invite(home: Home, tmp_path: Path, sent: str) -> None:
    home.joined()
    shutil.copy(home.root / "shop.enroll", tmp_path / "shop.enroll")
    (tmp_path / "tenants.json").write_text('{"format": 1, "tenants": {}}')
    code, _, err = home.run("join", str(tmp_path / sent), "--dir", str(tmp_path / "other"))
    assert code == 2 and "this is not an invite; give the .invite file" in err and err.count("\n") == 1


def test_start_says_at_once_that_the_run_is_over(home: Home) -> None:
    home.joined()
    adapters = AdapterFolder(home.place, home.card.hash)
    adapters.keep({"head.bias": np.zeros(2, np.float32)}, 2)
    agreement, lines = read_agreement(home.place), list[str]()
    assert not is_over(home.place, agreement, Registry.of_user(), lines.append) and not lines
    adapters.keep({"head.bias": np.zeros(2, np.float32)}, 2, final=True)
    Snapshot(home.place.snapshot, "run").write([Example("u1", {})])
    code, out, err = home.run("start", "--dir", str(home.root))
    assert code == 0, err
    assert "the run is over after round 2" in out and "loading" not in out
    assert not list(home.place.snapshot.iterdir())
    # The server may wait for the reply to the final adapter itself.
    envelope = PullMessagesResponse(messages_list=[ProtoMessage()], message_object_trees=[ObjectTree()])
    Journal(home.place.journal).keep(envelope)
    assert not is_over(home.place, agreement, Registry.of_user(), lines.append)


def test_start_says_at_once_that_nothing_is_left(home: Home) -> None:
    home.joined()
    agreement, lines = read_agreement(home.place), list[str]()
    with agreement.open_ledger(home.place, Registry.of_user()) as ledger:
        [segment] = ledger.segments()
        for number in range(2):
            ledger.reserve(segment, Kind.TRAIN, number + 1, "a" * 64)
        for number in range(segment.plan.cap_tables):
            ledger.reserve(segment, Kind.EVALUATE, number, "a" * 64)
    # Free is what can still come: the final adapter, and kept replies.
    assert (
        not is_over(home.place, agreement, Registry.of_user(), lines.append)
        and "nothing is left of this run's share" in lines[0]
    )
    home.edit("reply_every = 0.25", 'reply_every = 0.25\nkinds = ["train", "evaluate"]')
    Snapshot(home.place.snapshot, "run").write([Example("u1", {})])
    code, out, err = home.run("start", "--dir", str(home.root))
    assert not list(home.place.snapshot.iterdir())
    assert code == 3 and "nothing is left of this run's share (epsilon=4" in err and "loading" not in out


def test_a_source_that_was_edited_after_join_is_registered_by_start(home: Home) -> None:
    home.joined()
    shutil.copy(home.root / "visits.csv", home.root / "june.csv")
    home.edit("visits.csv", "june.csv")
    (home.root / "june.csv").write_text("visitor\n")
    assert home.run("check", "--dir", str(home.root))[0] == 2
    registry = populations_folder() / "registry.json"
    assert not registry.exists(), "a look writes nothing"
    assert home.run("start", "--dir", str(home.root))[0] == 2, "there is no row in it"
    assert str(home.root / "june.csv") in registry.read_text()


def test_a_wrong_base_model_is_refused(home: Home, tiny_base: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_base, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 0.5}))
    home.run("join", str(home.invite()), "--dir", str(home.root))
    home.place.tenant_file.write_text(TENANT.format(base=other))
    home.write_data()
    code, _, err = home.run("check", "--dir", str(home.root))
    assert code == 2
    assert "config.json" in err and home.card.base.config_sha256 in err


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"card_hash": "0" * 64}, "hash"),
        ({"format": 2}, "format"),
        ({"ca": "nothing"}, "certificate"),
        ({"extra": 1}, "unknown key 'extra'"),
        ({"card": "{}"}, "missing"),
    ],
)
def test_a_wrong_invite_is_refused(home: Home, change: dict[str, Any], told: str) -> None:
    path = home.invite()
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    code, _, err = home.run("join", str(path), "--dir", str(home.root))
    assert code == 2
    assert told in err
    assert not home.root.exists()


@pytest.mark.parametrize("command", ["check", "start", "budget", "join"])
def test_an_empty_directory_is_a_clear_error(home: Home, command: str) -> None:
    code, _, err = home.run(command, "--dir", str(home.root), *(["--yes"] if command == "join" else []))
    assert code == 2
    assert "join" in err
    assert err.count("\n") == 1


def test_a_second_start_is_refused(home: Home) -> None:
    home.joined()
    with home.place.running():
        code, _, err = home.run("start", "--dir", str(home.root))
    assert code == 2
    assert "already runs" in err


@pytest.mark.parametrize("command", [["start"], ["check"], ["join", "--yes"]])
def test_a_ledger_that_is_gone_is_refused_and_never_made_anew(home: Home, command: list[str]) -> None:
    home.joined()
    shutil.rmtree(home.ledger.parent)
    code, _, err = home.run(*command, "--dir", str(home.root))
    assert code == 2
    assert "restore its newest copy" in err and err.count("\n") == 1
    assert not home.ledger.exists()


@pytest.mark.parametrize("command", [["check"], ["join", "--yes"]])
def test_a_ledger_inside_the_directory_is_refused(home: Home, command: list[str]) -> None:
    home.run("join", str(home.invite()), "--dir", str(home.root))
    home.edit("../populations", "populations")
    home.write_data()
    code, _, err = home.run(*command, "--dir", str(home.root))
    assert code == 2
    assert "lies inside the tenant's directory" in err and err.count("\n") == 1


def test_the_command_line_always_uses_the_registry(home: Home, tmp_path: Path) -> None:
    """A copy of directory and ledger, side by side, as people make backups, would be a second budget."""
    home.joined()
    assert home.run("join", "--dir", str(home.root), "--yes")[0] == 0
    shutil.copytree(home.root, tmp_path / "copy" / "shop")
    shutil.copytree(home.ledger.parent, tmp_path / "copy" / "populations")
    for command in (["start"], ["check"], ["join", "--yes"]):
        code, _, err = home.run(*command, "--dir", str(tmp_path / "copy" / "shop"))
        assert code == 2
        assert "has its ledger at" in err and "a second budget" in err and err.count("\n") == 1


def test_a_whole_run(home: Home, superlink: "SuperLink") -> None:
    """train, evaluate and deliver against Flower's own server, then budget and predict."""
    from fedprofile.client.participation import participate
    from fedprofile.client.site import load_model

    home.joined(superlink.address, superlink.ca)
    agreement = read_agreement(home.place)
    key = read_key(home.place.key)
    node_id = superlink.enrol(key.public_key())
    lines: list[str] = []
    errors: list[BaseException] = []

    snapshot = Snapshot(home.place.snapshot, "run")

    def run() -> None:
        try:
            with home.place.running():
                examples = ExampleSource(agreement.tenant, agreement.card, home.root, snapshot=snapshot)
                participate(home.place, agreement, examples, key, lines.append, threading.Event())
        except BaseException as error:
            errors.append(error)

    # Not while the thread loads one as well: warnings are filtered for the whole process, and some are errors here.
    model, _ = load_model(home.card, agreement.tenant, home.root)
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    start, mark = model.initial_arrays(), LedgerMark()
    hash_ = home.card.hash
    superlink.wait_online(node_id)
    table = reply_of(superlink.reply(superlink.ask(node_id, Request(Kind.EVALUATE, hash_, 0, start, mark))))
    assert set(table.arrays) == {TABLE}
    first = reply_of(superlink.reply(superlink.ask(node_id, Request(Kind.TRAIN, hash_, 1, start, table.ledger))))
    assert {name: array.shape for name, array in first.arrays.items()} == {n: a.shape for n, a in start.items()}
    assert first.ledger.sequence == 2
    # The same question is free and gets the same bytes; a second asking in a new envelope.
    again = reply_of(superlink.reply(superlink.ask(node_id, Request(Kind.TRAIN, hash_, 1, start, first.ledger))))
    for name, array in first.arrays.items():
        np.testing.assert_array_equal(array, again.arrays[name])
    assert again.ledger == first.ledger
    foreign = superlink.reply(superlink.ask(node_id, Request(Kind.TRAIN, "b" * 64, 2, start, mark)))
    assert refusal_of(foreign) == "card"
    after = {name: array + first.arrays[name] for name, array in start.items()}
    running = json.loads(home.run("budget", "--dir", str(home.root), "--json")[1])
    assert [release["kind"] for release in running["releases"]] == ["evaluate", "train"]
    assert snapshot.read()
    final = superlink.ask(node_id, Request(Kind.DELIVER, hash_, 2, after, first.ledger))
    assert reply_of(superlink.reply(final)).arrays == {}
    thread.join(120)
    assert not errors and not thread.is_alive()
    assert any("update sent" in line for line in lines) and lines[-1].startswith("finished: spent epsilon=")
    assert not list(home.place.snapshot.iterdir()), "the run is over"

    code, out, _ = home.run("budget", "--dir", str(home.root), "--json")
    ledger = json.loads(out)
    assert code == 0
    assert ledger["refused"] == 1
    assert 0 < ledger["epsilon_spent"] <= 4.0
    assert ledger["epsilon_spent"] == max(ledger["epsilon_train"], ledger["epsilon_evaluation"])
    code, out, _ = home.run("budget", "--dir", str(home.root), "--show", "2", "--json")
    left = json.loads(out)
    assert left["kind"] == "train" and left["payload"] == arrays_hash(first.arrays)
    assert left["fields"]["ledger_head"] == first.ledger.head
    assert left["fields"]["arrays"] == [
        {"name": name, "dtype": str(a.dtype), "shape": list(a.shape), "sha256": hashlib.sha256(a.tobytes()).hexdigest()}
        for name, a in first.arrays.items()
    ]
    shown = home.run("budget", "--dir", str(home.root), "--show", "2")[1]
    assert "Released for sending, with exactly these fields" in shown and all(name in shown for name in first.arrays)
    [stored] = [path for path in home.place.outbox.iterdir() if b'"evaluate"' in path.read_bytes()]
    stored.unlink()
    assert "not in this directory's outbox" in home.run("budget", "--dir", str(home.root), "--show", "1")[1]
    assert home.run("budget", "--dir", str(home.root), "--show", "9")[0] == 2
    assert "for life" in home.run("budget", "--dir", str(home.root))[1]

    (home.root / "new.csv").write_text(
        "visitor,time,month,action,item,visits,device\nu1,2026-02-01,w1,viewed,shoes,3,phone\n"
        "nobody,2026-02-01,w1,viewed,books,,desk\n"
    )
    code, out, err = home.run("predict", "--dir", str(home.root), "--input", str(home.root / "new.csv"), "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [(row["user"], row["round"]) for row in found] == [("u1", 2), ("nobody", 2)]
    for row in found:
        assert sum(row["probabilities"].values()) == pytest.approx(1.0)
        assert row["probabilities"]["yes"] != 0.5
    target = home.root / "out.csv"
    code, _, _ = home.run(
        "predict", "--dir", str(home.root), "--input", str(home.root / "new.csv"), "--output", str(target)
    )
    assert code == 0
    assert target.read_text().splitlines()[0] == "user,label,p(no),p(yes)"
    assert target.stat().st_mode & 0o777 == 0o600
    code, _, err = home.run("predict", "--dir", str(home.root), "--input", "rows.xlsx")
    assert code == 2 and ".csv" in err
    _check_review(home)
    log = home.place.log
    assert not log.exists() or "u1" not in log.read_text()
    private = [home.place.journal, home.place.outbox, home.place.cache, home.place.adapters]
    assert all(path.stat().st_mode & 0o077 == 0 for path in private)


def _check_review(home: Home) -> None:
    """What the tenant leaves to a person goes into a private file of its own, and into nothing else."""
    command = ["predict", "--dir", str(home.root), "--input", str(home.root / "new.csv")]
    review = home.root / "review.csv"
    code, _, err = home.run(*command, "--review", str(review))
    assert code == 2 and "has no [judgement]" in err and not review.exists()
    home.edit("[policy]", "[judgement]\nband = [0.0, 1.0]\n\n[policy]")
    code, out, err = home.run(*command, "--review", str(review), "--json")
    assert code == 0 and "2 of 2 records are left to a person" in err
    assert [row["decision"] for row in json.loads(out)] == ["review", "review"]
    assert review.stat().st_mode & 0o777 == 0o600
    lines = review.read_text().splitlines()
    assert lines[0] == "user,p(no),p(yes),because,history" and any(
        "u1" in line and "viewed shoes" in line for line in lines
    )
    code, _, err = home.run(*command, "--review", str(review))
    assert code == 2 and "is there already" in err
    code, _, err = home.run(*command, "--review", str(home.root / "a.csv"), "--output", str(home.root / "a.csv"))
    assert code == 2 and "--output as well" in err and not (home.root / "a.csv").exists()


def test_the_end_of_the_run_is_known_once_it_was_told(home: Home) -> None:
    """Refused or taken: a client that was handed the final adapter need not wait for a server that has gone."""
    from fedprofile.client.site import open_site

    home.joined()
    agreement = read_agreement(home.place)

    def opened() -> "Site":
        examples = ExampleSource(agreement.tenant, home.card, home.root)
        return open_site(home.place, agreement, examples, print, Registry.of_user())

    def asked(kind: Kind, arrays: Arrays) -> Message:
        # Flower lets only a process with a task's identity make a message.
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        return Message(content_of(Request(kind, home.card.hash, 2, arrays)), 1, kind.value)

    site = opened()
    start = site.model.initial_arrays()
    site.adapters.keep(start, 2)
    assert site.answer(asked(Kind.EVALUATE, start)).has_content() and not site.over
    strange = asked(Kind.DELIVER, {"head.bias": start["head.bias"]})
    assert refusal_of(reply := site.answer(strange)) == "adapter"
    assert site.over and not site.sent(strange, reply)
    site.close()

    # A refusal is forgotten, the adapter is not: not even by a process that died before it could answer.
    site = opened()
    assert not site.over
    final = asked(Kind.DELIVER, start)
    reply = site.answer(final)
    site.close()
    site = opened()
    assert site.over
    assert site.sent(final, reply)
    site.close()
    site = opened()
    assert site.over
    site.close()


def test_the_real_process(home: Home, superlink: "SuperLink", wait_until: Callable[[Callable[[], bool]], None]) -> None:
    """start as a process: refused twice, ended by SIGTERM, refused by a ledger that is behind."""
    home.joined(superlink.address, superlink.ca)
    node_id = superlink.enrol(read_key(home.place.key).public_key())
    command = [str(Path(sys.executable).parent / "flower-client"), "start", "--dir", str(home.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        superlink.wait_online(node_id)
        wait_until(home.place.node.exists)  # The client knows as well by now.
        code, _, err = home.run("start", "--dir", str(home.root))
        assert (code, err.count("\n")) == (2, 1)
        assert "already runs" in err
        process.terminate()
        out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert out.splitlines()[-1].startswith("stopped")
    assert node_id not in superlink.state.get_nodes(superlink.run_id)

    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        superlink.wait_online(node_id)
        seen = LedgerMark(7, "c" * 64)
        arrays = {"head.bias": np.zeros(2, np.float32)}
        strange = superlink.ask(node_id, Request(Kind.TRAIN, home.card.hash, 1, arrays, seen))
        assert refusal_of(superlink.reply(strange)) == "adapter"
        layout = _start(home)
        behind = superlink.ask(node_id, Request(Kind.TRAIN, home.card.hash, 1, layout, seen))
        assert refusal_of(superlink.reply(behind)) == "ledger"
        out, err = process.communicate(timeout=120)
    assert process.returncode == 3
    assert "the server has seen entry 7" in err and err.count("\n") == 1
    assert "Traceback" not in out + err
    ledger = json.loads(home.run("budget", "--dir", str(home.root), "--json")[1])
    assert ledger["releases"] == [] and ledger["refusals"] == {"adapter": 1, "ledger": 1}


def _start(home: Home) -> Arrays:
    from fedprofile.client.site import load_model

    return load_model(home.card, home.place.read_tenant_file(), home.root)[0].initial_arrays()


def test_predict_before_anything_came(home: Home) -> None:
    home.joined()
    code, _, err = home.run("predict", "--dir", str(home.root), "--input", "rows.csv")
    assert code == 2
    assert "no adapter has come yet" in err


@pytest.mark.parametrize("command", [(), ("join",), ("check",), ("start",), ("budget",), ("predict",)])
def test_help_imports_nothing_heavy(command: tuple[str, ...]) -> None:
    code = (
        "import sys\nfrom fedprofile.client.cli import main\n"
        f"sys.argv = ['flower-client', *{command!r}, '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 0, end.code\n"
        "heavy = {'torch', 'flwr', 'transformers', 'numpy', 'opacus', 'peft', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_unknown_options_are_one_sentence(home: Home) -> None:
    code, _, err = home.run("check", "--dir", str(home.root), "--jsn")
    assert code == 2
    assert err.startswith("error: No such option") and "--jsn" in err and err.count("\n") == 1
    code, _, err = home.run("check", "--json")
    assert code == 2
    assert "--dir" in json.loads(err)["error"]
