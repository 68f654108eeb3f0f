"""One budget for the same users: what people ordinarily do to directories, names, files and ledgers gives no second."""

import re
import shutil
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fedprofile.client.agreement import agree, claim_population, claim_sources, open_behind, read_agreement
from fedprofile.client.directory import TenantDirectory, write_model
from fedprofile.client.enrolment import make_key
from fedprofile.client.ledger_summary import summary
from fedprofile.client.records import ExampleSource
from fedprofile.client.registry import Registry
from fedprofile.client.segments import SegmentPlan
from fedprofile.common.card import FederationCard
from fedprofile.common.enrolment import Invite
from fedprofile.common.errors import BudgetRefusal, ConfigError, LedgerBehindError
from fedprofile.common.messages import Kind
from fedprofile.common.tenant import Columns

TENANT = """
[source]
{source}
[columns]
user = "visitor"
label = "bought"
[population]
name = "{name}"
declared_users = 50
{ledger}
[budget]
epsilon = 4.0
[run]
epsilon = 3.0
"""


class Machine:
    """One user's machine: tenant directories, and the state folder with its registry."""

    def __init__(self, root: Path, card: FederationCard, other_card: FederationCard) -> None:
        self.root, self.cards = root, {"first": card, "second": other_card}
        self.populations = root / "state" / "fedprofile" / "populations"
        self.registry = Registry.of_user()

    def tenant(
        self, directory: str, *, card: str = "first", name: str = "shop", source: str = "", ledger: str = ""
    ) -> TenantDirectory:
        """A directory as it is before the person agrees."""
        place = TenantDirectory(self.root / directory)
        place.create()
        make_key(place.key)
        chosen = self.cards[card]
        invite = Invite(
            tenant="shop", address="localhost:1", ca="", card=chosen.canonical().decode(), card_hash=chosen.hash
        )
        write_model(place.invite, invite)
        source = source or f'kind = "csv"\npath = "{directory}.csv"'
        text = TENANT.format(name=name, source=source, ledger=f'ledger = "{ledger}"' if ledger else "")
        place.tenant_file.write_text(text)
        return place

    def agree(self, place: TenantDirectory, registry: Registry | None = None) -> int:
        """What `join` does; the segment's number."""
        invite, tenant = place.read_invite(), place.read_tenant_file()
        card = invite.read_card()
        # The noise stands for a solved one.
        plan = SegmentPlan(card.hash, tenant.run.epsilon, tenant.run_delta, 0.1, 9.0, 1.0, 4, 2, 4, 9.0, 3)
        registry = registry or self.registry
        segment, _ = agree(place, invite=invite, card=card, tenant=tenant, plan=plan, registry=registry)
        return segment.number

    def ledgers(self) -> list[Path]:
        return sorted(path.relative_to(self.root) for path in self.root.rglob("*.sqlite"))


@pytest.fixture
def machine(tmp_path: Path, card_data: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    cards = [FederationCard.model_validate(card_data(name=name)) for name in ("first", "second")]
    return Machine(tmp_path, *cards)


def _claim(machine: Machine, place: TenantDirectory) -> bool:
    return claim_population(place, place.read_tenant_file(), machine.registry)[1]


@pytest.mark.parametrize("ledger", ["shop.sqlite", "sub/shop.sqlite", "../one/shop.sqlite", "/ABSOLUTE", "../link/x"])
def test_a_ledger_inside_the_directory_is_refused(machine: Machine, ledger: str) -> None:
    place = machine.tenant("one", ledger=ledger.replace("/ABSOLUTE", f"{machine.root}/one/shop.sqlite"))
    (machine.root / "link").symlink_to(place.root)
    for refused in (_claim, Machine.agree):
        with pytest.raises(ConfigError, match="lies inside the tenant's directory, and a budget must outlive it"):
            refused(machine, place)
    assert machine.ledgers() == [] and not place.segment.exists()


def test_a_ledger_that_moved_into_the_directory_is_refused_at_the_start(machine: Machine) -> None:
    place = machine.tenant("one", ledger="../ledgers/shop.sqlite")
    machine.agree(place)
    read_agreement(place)
    shutil.move(machine.root / "ledgers", place.root / "ledgers")
    (machine.root / "ledgers").symlink_to(place.root / "ledgers")
    with pytest.raises(ConfigError, match="lies inside the tenant's directory"):
        read_agreement(place)


def test_deleting_the_directory_and_joining_again_resets_nothing(machine: Machine) -> None:
    machine.agree(machine.tenant("one"))
    shutil.rmtree(machine.root / "one")
    assert machine.agree(machine.tenant("one")) == 1
    shutil.rmtree(machine.root / "one")
    with pytest.raises(BudgetRefusal):
        machine.agree(machine.tenant("one", card="second"))
    assert len(machine.ledgers()) == 1


def test_one_name_has_one_ledger(machine: Machine) -> None:
    machine.agree(machine.tenant("one", ledger="../a/shop.sqlite"))
    second = machine.tenant("two", card="second", ledger="../b/shop.sqlite")
    for refused in (_claim, Machine.agree):
        with pytest.raises(ConfigError, match=r"has its ledger at .*a/shop.sqlite, and a second one .* write name = "):
            refused(machine, second)
    assert machine.ledgers() == [Path("a/shop.sqlite")]
    with pytest.raises(BudgetRefusal):
        machine.agree(machine.tenant("two", card="second", ledger="../a/shop.sqlite"))


def test_one_source_has_one_name(machine: Machine) -> None:
    """Two invites over the same file: whatever the operator called the tenant, the users are the same."""
    data = machine.root / "visits.csv"
    data.touch()
    link = machine.root / "link.csv"
    link.symlink_to(data)
    machine.agree(machine.tenant("one", source=f'kind = "csv"\npath = "{data}"'))
    others = [
        f'kind = "csv"\npath = "{link}"',
        'kind = "csv"\npath = "../visits.csv"',
        f'kind = "csv"\npath = "labels.csv"\n[events]\nkind = "csv"\npath = "{data}"',
    ]
    for source in others:
        second = machine.tenant("two", name="shop-2", card="second", source=source)
        for refused in (_claim, Machine.agree):
            with pytest.raises(
                ConfigError, match=r"are population 'shop' already, .* write name = \"shop\" and ledger"
            ):
                refused(machine, second)
    assert len(machine.ledgers()) == 1
    machine.agree(machine.tenant("three", name="clinic", source='kind = "csv"\npath = "patients.csv"'))
    assert len(machine.ledgers()) == 2


def _sql(url: str, query: str = "SELECT * FROM visits") -> str:
    return f'kind = "sql"\nurl = "{url}"\nquery = "{query}"'


def test_an_sql_source_is_known_by_its_database_and_its_query(machine: Machine) -> None:
    url = "postgresql+psycopg://reader:hunter2@db/shop"
    machine.agree(machine.tenant("one", source=_sql(url)))
    written = (machine.populations / "registry.json").read_text()
    assert all(word not in written for word in ("hunter2", "SELECT", "reader", "db/"))
    same = (
        _sql("postgresql+psycopg://reader:other@db/shop?passfile=x", "SELECT *  FROM visits"),
        _sql(url, "select * from visits ;"),
        _sql("postgresql://owner@DB:5432/shop"),
        _sql("postgresql+psycopg2://:x@/shop?host=db"),
    )
    for source in same:
        text = machine.tenant("two", name="shop-2", card="second", source=source).tenant_file
        # Not even a person's word makes others of the users of one query.
        for word in ("", 'apart_from = ["shop"]'):
            text.write_text(text.read_text().replace("declared_users = 50", f"declared_users = 50\n{word}"))
            with pytest.raises(ConfigError, match="are population 'shop' already"):
                _claim(machine, TenantDirectory(text.parent))
    machine.agree(machine.tenant("other", name="clinic", source=_sql("postgresql://reader@db/clinic")))
    assert len(machine.ledgers()) == 2


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("postgresql+psycopg://reader:hunter2@db/shop", "postgresql://owner@DB.:5432/Shop"),
        ("postgresql:///shop", "postgresql://u@127.0.0.1/shop"),
        ("postgresql://shop@localhost", "postgresql://u@[::1]/shop"),
        ("mysql+pymysql://u@db/shop", "mariadb://v@db:3306/shop"),
        ("sqlite:///../shop.db", "sqlite:////ROOT/shop.db"),
        ("sqlite:///../shop.db", "sqlite:////ROOT/hard.db"),
        ("sqlite:///../shop.db", "sqlite:///file:../link.db?mode=ro&uri=true"),
    ],
)
def test_another_population_in_the_same_database_needs_a_persons_word(
    machine: Machine, first: str, second: str
) -> None:
    root = machine.root
    (root / "shop.db").touch()
    (root / "hard.db").hardlink_to(root / "shop.db")
    (root / "link.db").symlink_to(root / "shop.db")
    one = machine.tenant("one", source=_sql(first.replace("/ROOT", str(root))))
    machine.agree(one)
    place = machine.tenant("two", name="clinic", source=_sql(second.replace("/ROOT", str(root)), "SELECT * FROM other"))
    for refused in (_claim, Machine.agree):
        with pytest.raises(ConfigError, match=r"two budgets; .*write name = \"shop\".* apart_from = \[\"shop\"\]"):
            refused(machine, place)
    text = place.tenant_file.read_text()
    place.tenant_file.write_text(text.replace("declared_users = 50", 'declared_users = 50\napart_from = ["shop"]'))
    machine.agree(place)
    # It is kept: neither of the two is asked again.
    place.tenant_file.write_text(text)
    assert _claim(machine, place) and _claim(machine, one)
    third = machine.tenant("three", name="bank", source=_sql(first.replace("/ROOT", str(root)), "SELECT 3"))
    text = third.tenant_file.read_text()
    third.tenant_file.write_text(text.replace("declared_users = 50", 'declared_users = 50\napart_from = ["shop"]'))
    with pytest.raises(ConfigError, match="population 'clinic' as well"):
        _claim(machine, third)


def test_a_hard_link_is_the_same_file_and_a_new_file_is_another(machine: Machine) -> None:
    data = machine.root / "visits.csv"
    data.write_text("old")
    machine.agree(machine.tenant("one", source=f'kind = "csv"\npath = "{data}"'))
    link = machine.root / "hard.csv"
    link.hardlink_to(data)
    second = machine.tenant("two", name="shop-2", source=f'kind = "csv"\npath = "{link}"')
    with pytest.raises(ConfigError, match="are population 'shop' already"):
        _claim(machine, second)
    link.unlink()
    link.write_text("somebody else's")
    assert not _claim(machine, second)


def test_a_source_that_was_edited_after_join_is_registered_before_it_is_read(machine: Machine) -> None:
    """Otherwise the file of today would be another population's tomorrow."""
    one, june = machine.tenant("one"), machine.root / "june.csv"
    machine.agree(one)
    one.tenant_file.write_text(one.tenant_file.read_text().replace('path = "one.csv"', f'path = "{june}"'))
    before = (machine.populations / "registry.json").read_bytes()
    assert _claim(machine, one), "a look alone"
    assert (machine.populations / "registry.json").read_bytes() == before
    claim_sources(one, one.read_tenant_file(), machine.registry)
    with pytest.raises(ConfigError, match="are population 'shop' already"):
        machine.agree(machine.tenant("two", name="june-people", source=f'kind = "csv"\npath = "{june}"'))
    known = (machine.populations / "registry.json").stat()
    claim_sources(one, one.read_tenant_file(), machine.registry)
    assert (machine.populations / "registry.json").stat().st_ino == known.st_ino, "nothing new, nothing written"
    machine.agree(machine.tenant("three", name="clinic", source='kind = "csv"\npath = "../clinic.csv"'))
    one.tenant_file.write_text(one.tenant_file.read_text().replace("june.csv", "clinic.csv"))
    with pytest.raises(ConfigError, match="are population 'clinic' already"):
        claim_sources(one, one.read_tenant_file(), machine.registry)


def test_a_link_that_leads_elsewhere_is_registered_whenever_it_is_read(machine: Machine) -> None:
    link, visits = machine.root / "newest.csv", "visitor,time,month,action,item,visits,device,region,bought\n"
    for month in ("may", "june", "clinic"):
        rows = "u1,2026-01-01,w1,viewed,shoes,3,phone,north,no\n"
        (machine.root / f"{month}.csv").write_text(visits + rows)
    link.symlink_to("may.csv")
    one = machine.tenant("one", source=f'kind = "csv"\npath = "{link}"')
    tenant = one.read_tenant_file()
    tenant = tenant.model_copy(update={"columns": Columns(user="visitor", time="time", label="bought")})
    examples = ExampleSource(
        tenant, machine.cards["first"], one.root, partial(claim_sources, one, tenant, machine.registry)
    )
    machine.agree(one)
    machine.agree(machine.tenant("three", name="clinic", source='kind = "csv"\npath = "../clinic.csv"'))
    examples.validate()
    assert examples.news() and examples.news() is None

    def lead_to(target: str) -> None:
        link.unlink()
        link.symlink_to(target)

    lead_to("june.csv")
    examples.news()
    with pytest.raises(ConfigError, match="are population 'shop' already"):
        machine.agree(machine.tenant("two", name="june-people", source='kind = "csv"\npath = "../june.csv"'))
    lead_to("clinic.csv")
    with pytest.raises(ConfigError, match="are population 'clinic' already"):
        examples.news()


@pytest.mark.parametrize("known_by", ["segment.json", "registry", "marks", "account's marks"])
@pytest.mark.parametrize("emptied", [False, True])
def test_a_lost_ledger_is_never_made_anew(machine: Machine, known_by: str, emptied: bool) -> None:
    place = machine.tenant("one")
    machine.agree(place)
    registered = machine.populations / "registry.json"
    if known_by != "registry":
        registered.unlink()
    if known_by != "segment.json":
        place.segment.unlink()
    if known_by != "marks":
        shutil.rmtree(place.marks)
    if known_by != "account's marks":
        shutil.rmtree(machine.registry.marks)
    [ledger] = machine.ledgers()
    for path in machine.populations.glob("shop.sqlite*"):
        path.unlink()
    if emptied:
        (machine.root / ledger).touch()
    else:
        with pytest.raises(ConfigError, match="is not there; restore its newest copy"):
            _claim(machine, place)
    with pytest.raises(ConfigError, match="is not there; restore its newest copy"):
        machine.agree(place)
    if known_by == "segment.json":
        with pytest.raises(ConfigError, match="is not there; restore its newest copy"):
            read_agreement(place).open_ledger(place, machine.registry)
    if emptied:
        with pytest.raises(ConfigError, match="is not a ledger"):
            summary(machine.root / ledger)


def _with_user(place: TenantDirectory, column: str) -> None:
    text = place.tenant_file.read_text()
    place.tenant_file.write_text(re.sub('user = "[a-z]+"', f'user = "{column}"', text))


@pytest.mark.parametrize("known_by", ["segment.json", "ledger"])
def test_the_users_column_is_fixed(machine: Machine, known_by: str) -> None:
    """What was promised to a user may not become a promise to each of a user's sessions."""
    place = machine.tenant("one")
    machine.agree(place)
    assert place.read_segment().user_column == "visitor"
    _with_user(place, "session")
    with pytest.raises(ConfigError, match=r"columns.user is session, and visitor was frozen at join"):
        read_agreement(place)
    if known_by == "segment.json":
        with pytest.raises(ConfigError, match=r"tenant.toml: columns.user='session' differs from 'visitor'"):
            _claim(machine, place)
    else:
        place.segment.unlink()
    with pytest.raises(ConfigError, match=r"columns.user='session' differs from 'visitor'") as refused:
        machine.agree(place)
    assert refused.value.exit_code == 2
    _with_user(place, "visitor")
    assert machine.agree(place) == 1
    read_agreement(place)


def test_every_federation_over_a_population_counts_by_the_same_column(machine: Machine) -> None:
    machine.agree(machine.tenant("one"))
    second = machine.tenant("two", card="second")
    _with_user(second, "session")
    with pytest.raises(ConfigError, match=r"columns.user='session' differs from 'visitor', .* population 'shop'"):
        machine.agree(second)


def test_another_directory_does_not_make_a_lost_ledger_anew(machine: Machine) -> None:
    machine.agree(machine.tenant("one"))
    for path in machine.populations.glob("shop.sqlite*"):
        path.unlink()
    with pytest.raises(ConfigError, match="is not there; restore its newest copy"):
        machine.agree(machine.tenant("two", card="second"))
    assert machine.ledgers() == []


def test_a_restored_ledger_that_has_forgotten_a_run_takes_no_other_run(machine: Machine) -> None:
    first = machine.tenant("one", ledger="../a/shop.sqlite")
    first.tenant_file.write_text(first.tenant_file.read_text().replace("epsilon = 3.0", "epsilon = 1.0"))
    machine.agree(first)
    [ledger] = machine.root.glob("a/*.sqlite")
    with closing(sqlite3.connect(ledger)) as old, closing(sqlite3.connect(machine.root / "backup")) as new:
        old.backup(new)
    second = machine.tenant("two", card="second", ledger="../a/shop.sqlite")
    assert machine.agree(second) == 2
    shutil.copy(machine.root / "backup", ledger)
    third = machine.tenant("three", card="first", ledger="../a/shop.sqlite")
    with pytest.raises(LedgerBehindError, match="lacks 1 run"):
        machine.agree(third)
    assert machine.agree(second) == 2, "the forgotten run is charged again"
    with pytest.raises(BudgetRefusal):
        machine.agree(third)


def test_join_compares_with_the_directorys_marks(machine: Machine) -> None:
    place = machine.tenant("one", ledger="../a/shop.sqlite")
    machine.agree(place)
    ledger = machine.root / "a" / "shop.sqlite"
    shutil.copy(ledger, machine.root / "backup")
    with read_agreement(place).open_ledger(place, machine.registry) as opened:
        opened.reserve(opened.segments()[0], Kind.TRAIN, 1, "b" * 64)
    shutil.copy(machine.root / "backup", ledger)
    with pytest.raises(LedgerBehindError, match="write-off"):
        machine.agree(place)


def test_an_old_copy_is_noticed_through_every_directory_of_the_account(machine: Machine) -> None:
    """Another directory has no marks of those reservations, nor has one whose marks were deleted."""
    first = machine.tenant("one", ledger="../a/shop.sqlite")
    second = machine.tenant("two", card="second", ledger="../a/shop.sqlite")
    for place in (first, second):
        place.tenant_file.write_text(place.tenant_file.read_text().replace("epsilon = 3.0", "epsilon = 2.0"))
        machine.agree(place)
    ledger = machine.root / "a" / "shop.sqlite"
    shutil.copy(ledger, machine.root / "backup")
    with read_agreement(first).open_ledger(first, machine.registry) as opened:
        opened.reserve(opened.segments()[0], Kind.TRAIN, 1, "b" * 64)
    shutil.copy(machine.root / "backup", ledger)
    sentence = r"ends at entry 0, and a directory of this account has reserved entry 1 .*write-off"
    with pytest.raises(LedgerBehindError, match=sentence):
        read_agreement(second).open_ledger(second, machine.registry)
    with pytest.raises(LedgerBehindError, match=sentence):
        machine.agree(second)
    shutil.rmtree(first.marks)
    with pytest.raises(LedgerBehindError, match=sentence):
        read_agreement(first).open_ledger(first, machine.registry)
    kept = machine.registry.marks / "shop.json"
    assert kept.stat().st_mode & 0o777 == 0o600 and kept.parent.stat().st_mode & 0o777 == 0o700
    with open_behind(second, second.read_segment(), machine.registry) as opened:
        assert opened.missing() == 1
        opened.write_off()
    with read_agreement(second).open_ledger(second, machine.registry) as opened:
        opened.reserve(opened.segments()[1], Kind.TRAIN, 1, "b" * 64)
    # The other directory's own marks are of a loss that is written off by now.
    read_agreement(first).open_ledger(first, machine.registry).close()


def test_two_joins_at_once_make_one_ledger(machine: Machine) -> None:
    places = [machine.tenant(f"d{number}", ledger=f"../l{number}/shop.sqlite") for number in range(4)]
    ended: list[str] = []

    def join(place: TenantDirectory) -> None:
        try:
            ended.append(f"run {machine.agree(place)}")
        except ConfigError:
            ended.append("refused")

    threads = [threading.Thread(target=join, args=(place,)) for place in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ended) == ["refused", "refused", "refused", "run 1"]
    assert len(machine.ledgers()) == 1


def test_the_registry_is_for_the_owner_alone_and_a_damaged_one_is_refused(machine: Machine) -> None:
    place = machine.tenant("one")
    machine.agree(place)
    path = machine.populations / "registry.json"
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"registry\.json: cannot be read"):
        machine.agree(place)


def test_a_refused_join_registers_nothing(machine: Machine) -> None:
    machine.agree(machine.tenant("one"))
    before = (machine.populations / "registry.json").read_bytes()
    with pytest.raises(BudgetRefusal):
        machine.agree(machine.tenant("two", card="second"))
    assert (machine.populations / "registry.json").read_bytes() == before


def test_a_rehearsals_copies_need_no_registry(machine: Machine) -> None:
    for number in (1, 2):
        place = machine.tenant(f"d{number}", ledger=f"../l{number}/shop.sqlite")
        invite, tenant = place.read_invite(), place.read_tenant_file()
        card = invite.read_card()
        plan = SegmentPlan(card.hash, tenant.run.epsilon, tenant.run_delta, 0.1, 9.0, 1.0, 4, 2, 4, 9.0, 3)
        agree(place, invite=invite, card=card, tenant=tenant, plan=plan, registry=None)
        assert len(summary(machine.root / f"l{number}" / "shop.sqlite").segments) == 1
    assert not machine.populations.exists()
