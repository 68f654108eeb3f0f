"""A second run over a source that has grown: what the ledger makes of it."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fedprofile.client.agreement import agree, read_agreement
from fedprofile.client.directory import TenantDirectory, write_model
from fedprofile.client.enrolment import make_key
from fedprofile.client.ledger_summary import summary
from fedprofile.client.records import ExampleSource
from fedprofile.client.registry import Registry
from fedprofile.client.segments import plan_segment
from fedprofile.client.training import TrainingSettings
from fedprofile.common.card import FederationCard
from fedprofile.common.enrolment import Enrolment, Invite, read_exchanged
from fedprofile.common.errors import BudgetRefusal

TENANT = """
[source]
kind = "sql"
url = "sqlite:///shop.db"
query = "SELECT * FROM labelled"
[events]
kind = "sql"
url = "sqlite:///shop.db"
query = "SELECT * FROM events"
[columns]
user = "who"
label = "bought"
time = "day"
[reading]
snapshot = "run"
[population]
name = "shop"
declared_users = 50
ledger = "../populations/shop.sqlite"
[budget]
epsilon = 6.5
[run]
epsilon = 3.0
"""


class Shop:
    """A tenant whose database grows."""

    def __init__(self, folder: Path, cards: list[FederationCard]) -> None:
        self.place, self.cards, self.registry = TenantDirectory(folder / "shop"), cards, Registry.of_user()
        self.place.create()
        make_key(self.place.key)
        self.place.tenant_file.write_text(TENANT)
        with closing(sqlite3.connect(self.place.root / "shop.db")) as database, database:
            database.execute("CREATE TABLE labelled (who TEXT, day TEXT, month TEXT, visits, device, bought TEXT)")
            database.execute("CREATE TABLE events (who TEXT, day TEXT, action TEXT, item TEXT)")

    def grow(self, users: range, month: int) -> None:
        """Every user has a new label and a new event in a month."""
        with closing(sqlite3.connect(self.place.root / "shop.db")) as database, database:
            for user in users:
                day = f"2026-{month:02}-1"
                row = (f"u{user}", f"{day}5", "w1", 1, "phone", "no")
                database.execute("INSERT INTO labelled VALUES (?, ?, ?, ?, ?, ?)", row)
                database.execute("INSERT INTO events VALUES (?, ?, 'viewed', 'w2')", (f"u{user}", f"{day}0"))

    def join(self, card: FederationCard) -> int:
        """What `join` does; the segment's number."""
        invite = Invite(tenant="shop", address="x:1", ca="", card=card.canonical().decode(), card_hash=card.hash)
        write_model(self.place.invite, invite)
        tenant = self.place.read_tenant_file()
        plan = plan_segment(card, tenant)
        segment, _ = agree(self.place, invite=invite, card=card, tenant=tenant, plan=plan, registry=self.registry)
        return segment.number

    def run(self) -> tuple[dict[str, bool], int, TrainingSettings, int]:
        """What a started client would train with: the split, the events of all histories, the settings, the weight."""
        agreement = read_agreement(self.place)
        examples = ExampleSource(agreement.tenant, agreement.card, self.place.root)
        examples.validate()
        found = examples.news() or []
        with agreement.open_ledger(self.place, self.registry) as ledger:
            split = {example.user: ledger.evaluation_user(example.user) for example in found}
        settings = TrainingSettings.of(agreement.card, agreement.segment.plan, agreement.segment.declared_users)
        weight = read_exchanged(self.place.root / "shop.enroll", Enrolment).declared_users
        return split, sum(len(example.events) for example in found), settings, weight


def test_a_second_run_over_a_grown_source(
    tmp_path: Path, card_data: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    names = ("spring", "summer", "autumn")
    cards = [FederationCard.model_validate(card_data(name=name, task={"group": None})) for name in names]
    shop, ledger = Shop(tmp_path, cards), tmp_path / "populations" / "shop.sqlite"
    shop.grow(range(60), 1)
    assert shop.join(cards[0]) == 1
    first, events, settings, weight = shop.run()
    assert (len(first), events, weight) == (60, 60, 50)
    assert summary(ledger).left == pytest.approx(3.5)

    shop.grow(range(200), 2)
    assert shop.join(cards[0]) == 1, "the same card is the same run, whatever has grown"
    assert summary(ledger).left == pytest.approx(3.5)
    assert shop.join(cards[1]) == 2
    # Segments add, for all users: nobody knows which of them were there in the first run.
    assert summary(ledger).left == pytest.approx(0.5)
    second, grown, again, still = shop.run()
    assert (len(second), grown) == (200, 60 + 200 + 60)
    assert {user: second[user] for user in first} == first, "nobody who trained is evaluated now, nor the other way"
    assert 0 < sum(second[user] for user in second.keys() - first.keys()) < 140
    # Neither the divisor of the noise nor the server's weight follows the growth.
    assert (again.declared_users, still) == (50, 50) and again.denominator == settings.denominator
    with pytest.raises(BudgetRefusal):
        shop.join(cards[2])
