"""`flower-client budget` as a real process: verified, exported, and lost entries written off."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.client.terminal import on_a_terminal

from fedprofile.client.agreement import agree, read_agreement
from fedprofile.client.directory import TenantDirectory, write_model
from fedprofile.client.enrolment import make_key
from fedprofile.client.ledger_summary import summary
from fedprofile.client.registry import Registry
from fedprofile.client.segments import SegmentPlan
from fedprofile.common.accounting import solve_noise_multiplier
from fedprofile.common.card import FederationCard
from fedprofile.common.enrolment import Invite
from fedprofile.common.errors import LedgerBehindError
from fedprofile.common.messages import Kind, LedgerMark

CLIENT = Path(sys.executable).parent / "flower-client"

TENANT = """
[source]
kind = "csv"
path = "visits.csv"
[columns]
user = "visitor"
time = "time"
label = "bought"
[population]
name = "shop"
declared_users = 50
ledger = "../shop.sqlite"
[budget]
epsilon = 8.0
[run]
epsilon = 3.0
"""
VISITS = "visitor,time,month,action,item,visits,device,bought\nu1,2026-01-01,w1,viewed,shoes,3,phone,no\n"


@dataclass
class Tenant:
    """A joined directory, and real processes on it."""

    place: TenantDirectory
    environment: dict[str, str]

    @property
    def ledger(self) -> Path:
        return self.place.root.parent / "shop.sqlite"

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command: list[str | Path] = [CLIENT, *arguments, "--dir", self.place.root]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env=self.environment, stdin=subprocess.DEVNULL
        )

    def on_a_terminal(self, answer: str, *arguments: str) -> tuple[int, str]:
        """Exit code and everything on the screen, of a person who types one answer."""
        return on_a_terminal([CLIENT, *arguments, "--dir", self.place.root], answer, self.environment)

    def reserve(self, count: int) -> None:
        with read_agreement(self.place).open_ledger(self.place, Registry.of_user()) as ledger:
            [segment] = ledger.segments()
            for number in range(count):
                ledger.reserve(segment, Kind.TRAIN, number + 1, "b" * 64)


@pytest.fixture
def tenant(tmp_path: Path, card_data: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Tenant:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    card = FederationCard.model_validate(card_data(task={"group": None}))
    place = TenantDirectory(tmp_path / "shop")
    place.create()
    make_key(place.key)
    invite = Invite(tenant="shop", address="localhost:1", ca="", card=card.canonical().decode(), card_hash=card.hash)
    write_model(place.invite, invite)
    place.tenant_file.write_text(TENANT)
    (place.root / "visits.csv").write_text(VISITS)
    settings = place.read_tenant_file()
    share, delta = settings.run.epsilon, settings.run_delta
    noise = solve_noise_multiplier(share, delta, 0.1, 20), solve_noise_multiplier(share, delta, 1.0, 3)
    plan = SegmentPlan(card.hash, share, delta, 0.1, noise[0], 1.0, 4, 2, 20, noise[1], 3)
    agree(place, invite=invite, card=card, tenant=settings, plan=plan, registry=Registry.of_user())
    return Tenant(place, {**os.environ, "OMP_NUM_THREADS": "1"})


def _lose_two_of_three(tenant: Tenant) -> None:
    """A backup after the first of three reservations takes the ledger's place."""
    tenant.reserve(1)
    shutil.copy(tenant.ledger, tenant.ledger.with_name("backup"))
    tenant.reserve(2)
    shutil.copy(tenant.ledger.with_name("backup"), tenant.ledger)


def test_lost_entries_stop_the_client_until_a_person_writes_them_off(tenant: Tenant) -> None:
    _lose_two_of_three(tenant)
    started = tenant.run("start")
    assert started.returncode == 3, started.stderr
    assert "this directory has reserved entry 3" in started.stderr and started.stderr.count("\n") == 1
    assert "`flower-client budget --write-off`" in started.stderr

    for arguments in ((), ("--json",)):
        refused = tenant.run("budget", "--write-off", *arguments)
        assert refused.returncode == 2 and "give --yes" in refused.stderr
    code, shown = tenant.on_a_terminal("n", "budget", "--write-off")
    assert code == 3 and "you did not agree; nothing was written" in shown
    assert "Up to 2 entries" in shown and "train, 4 steps" in shown and "epsilon=3 (delta=" in shown
    assert [row.written_off for row in summary(tenant.ledger).releases] == [False]

    code, shown = tenant.on_a_terminal("y", "budget", "--write-off")
    assert code == 0 and "Written off: 6 steps in 2 entries" in shown
    told = json.loads(tenant.run("budget", "--json").stdout)
    assert [(row["kind"], row["steps"]) for row in told["releases"] if row["written_off"]] == [
        ("train", 4),
        ("evaluate", 2),
    ]
    assert (told["segments"][0]["steps"], told["segments"][0]["tables"]) == (6, 2)
    assert "(written off)" in tenant.run("budget").stdout
    tenant.reserve(7)
    assert summary(tenant.ledger).segments[0].steps == 20

    nothing = tenant.run("budget", "--write-off", "--yes", "--json")
    assert (nothing.returncode, json.loads(nothing.stdout)) == (0, {"written_off": [], "steps": 0})


def test_a_write_off_charges_a_run_that_was_lost_as_a_whole(tenant: Tenant) -> None:
    """The backup is from before the join."""
    plan = tenant.place.read_segment().plan
    tenant.reserve(1)
    with read_agreement(tenant.place).open_ledger(tenant.place, Registry.of_user()) as ledger:
        ledger._connection.executescript("DELETE FROM entries; DELETE FROM segments;")
    written = tenant.run("budget", "--write-off", "--yes")
    assert written.returncode == 0, written.stderr
    assert "this directory's run, which is missing as well: epsilon=3" in written.stdout
    [reading] = summary(tenant.ledger).segments
    assert reading.segment.plan == plan and (reading.steps, reading.tables) == (2, 1)


def test_a_write_off_that_only_the_server_asks_for_says_so(tenant: Tenant) -> None:
    tenant.reserve(1)
    with (
        read_agreement(tenant.place).open_ledger(tenant.place, Registry.of_user()) as ledger,
        pytest.raises(LedgerBehindError, match="ask the operator first"),
    ):
        ledger.check_mark(LedgerMark(900, "f" * 64))
    code, shown = tenant.on_a_terminal("n", "budget", "--write-off")
    said = " ".join(shown.split())
    assert code == 3 and said.count("Only the server claims this: the marks in this directory and of this account") == 2
    assert "so ask the operator first. Count this as spent for good" in said
    assert [row.written_off for row in summary(tenant.ledger).releases] == [False]


def test_a_lost_raise_is_taken_as_it_is_by_a_person(tenant: Tenant) -> None:
    shutil.copy(tenant.ledger, tenant.ledger.with_name("backup"))
    file = tenant.place.tenant_file
    file.write_text(file.read_text().replace("epsilon = 8.0", "epsilon = 11.0"))
    assert tenant.run("budget", "--raise", "second campaign", "--yes").returncode == 0
    shutil.copy(tenant.ledger.with_name("backup"), tenant.ledger)
    file.write_text(file.read_text().replace("epsilon = 11.0", "epsilon = 8.0"))
    started = tenant.run("start")
    assert started.returncode == 3 and "lacks a budget that was known in this directory" in started.stderr
    verified = tenant.run("budget", "--verify")
    assert verified.returncode == 3 and "a budget that was known here is another one" in verified.stderr
    code, shown = tenant.on_a_terminal("y", "budget", "--write-off")
    assert code == 0 and "A budget that was known here is not in this ledger" in shown
    tenant.reserve(1)


def test_a_ledger_in_use_is_one_plain_sentence(tenant: Tenant) -> None:
    with read_agreement(tenant.place).open_ledger(tenant.place, Registry.of_user()):
        refused = tenant.run("budget", "--write-off", "--yes")
    assert refused.returncode == 2
    assert "another process is writing to this ledger; stop it first" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_the_ledger_is_verified_and_exported(tenant: Tenant, tmp_path: Path) -> None:
    tenant.reserve(2)
    verified = tenant.run("budget", "--verify")
    assert verified.returncode == 0, verified.stderr
    assert "(pld)" in verified.stdout and "The ledger holds" in verified.stdout
    assert json.loads(tenant.run("budget", "--verify", "--json").stdout)["holds"] is True

    file = tmp_path / "ledger.json"
    assert tenant.run("budget", "--export", str(file)).returncode == 0
    export = json.loads(file.read_text())
    told = json.loads(tenant.run("budget", "--json").stdout)
    assert export["chain_holds"] is True and {name: export[name] for name in told if name != "releases"} == {
        name: told[name] for name in told if name != "releases"
    }
    assert [row["head"] for row in export["releases"]] == [row["head"] for row in told["releases"]]
    assert file.stat().st_mode & 0o777 == 0o600
    assert tenant.run("budget", "--export", str(file / "below")).returncode == 2
    absent = tmp_path / "absent" / "ledger.json"
    assert tenant.run("budget", "--export", str(absent)).returncode == 2 and not absent.parent.exists()

    with read_agreement(tenant.place).open_ledger(tenant.place, Registry.of_user()) as ledger:
        ledger._connection.execute("UPDATE entries SET steps = 1 WHERE sequence = 1")
    found = tenant.run("budget", "--verify")
    assert found.returncode == 3
    assert "PROBLEM" in found.stdout and "do not match their hashes" in found.stderr and found.stderr.count("\n") == 1
    both = tenant.run("budget", "--verify", "--show", "1")
    assert both.returncode == 2 and "at a time" in both.stderr


def test_a_budget_is_raised_by_a_person_who_says_why(tenant: Tenant) -> None:
    tenant.reserve(1)
    for yes in ((), ("--yes",)):
        no_raise = tenant.run("budget", "--raise", "because", *yes)
        assert no_raise.returncode == 2 and "is no raise of epsilon=8" in no_raise.stderr
        assert "was  epsilon" not in no_raise.stdout

    file = tenant.place.tenant_file
    file.write_text(file.read_text().replace("epsilon = 8.0", "epsilon = 11.0"))
    started = tenant.run("start")
    assert (
        started.returncode == 2 and "or raise the budget with `flower-client budget --raise REASON`" in started.stderr
    )
    forged = tenant.run("budget", "--raise", "ok\nReleases: 0", "--yes")
    assert forged.returncode == 2 and "in one line of plain text" in forged.stderr
    # What cannot be is said before anybody is asked.
    nameless = tenant.run("budget", "--raise", " ")
    assert nameless.returncode == 2 and "needs a reason" in nameless.stderr
    blind = tenant.run("budget", "--raise", "second campaign")
    assert blind.returncode == 2 and "give --yes" in blind.stderr
    blank = tenant.run("budget", "--raise", " ", "--yes")
    assert blank.returncode == 2 and "needs a reason" in blank.stderr
    code, shown = tenant.on_a_terminal("n", "budget", "--raise", "second campaign")
    assert code == 3 and "you did not agree; nothing was written" in shown
    assert "was  epsilon=8 (delta=" in shown and "is to be  epsilon=11 (delta=" in shown
    assert len(summary(tenant.ledger).budgets) == 1

    code, shown = tenant.on_a_terminal("y", "budget", "--raise", "second campaign")
    assert code == 0 and "Raised" in shown
    told = json.loads(tenant.run("budget", "--json").stdout)
    assert (told["epsilon"], told["left"]) == (11.0, 8.0)
    assert [(one["epsilon"], one["reason"], one["after_sequence"]) for one in told["budgets"]] == [
        (8.0, "when the ledger was made", 0),
        (11.0, "second campaign", 1),
    ]
    assert "to epsilon=11" in (text := tenant.run("budget").stdout) and "second campaign" in text
    tenant.reserve(1)
    assert json.loads(tenant.run("budget", "--verify", "--json").stdout)["holds"] is True
