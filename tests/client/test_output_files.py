"""Files that a person names for output: new ones only, and none that the client needs itself."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedprofile.client.cli import app
from fedprofile.client.directory import TenantDirectory, populations_folder, write_model
from fedprofile.client.enrolment import make_key
from fedprofile.client.ledger import Ledger
from fedprofile.client.output_files import refuse_own_file, require_new, write_new
from fedprofile.common.card import FederationCard
from fedprofile.common.cli import run_command
from fedprofile.common.enrolment import Invite
from fedprofile.common.errors import ConfigError
from fedprofile.common.tenant import TenantFile

TENANT: dict[str, Any] = {
    "source": {"kind": "csv", "path": "data/visits.csv"},
    "events": {"kind": "sql", "url": "sqlite:///events.db", "query": "SELECT * FROM events"},
    "columns": {"user": "visitor", "label": "bought"},
    "population": {"name": "shop", "declared_users": 50, "ledger": "../ledgers/shop.sqlite"},
    "budget": {"epsilon": 8.0},
    "run": {"epsilon": 3.0},
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TenantDirectory:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    place = TenantDirectory(tmp_path / "shop")
    place.create()
    (place.root / "data").mkdir()
    (tmp_path / "ledgers").mkdir()
    (tmp_path / "link").symlink_to(place.root)
    return place


@pytest.mark.parametrize(
    "name",
    [
        *("ledgers/shop.sqlite", "ledgers/shop.sqlite-wal", "ledgers/shop.sqlite-shm", "ledgers/shop.sqlite.lock"),
        *("state/fedprofile/populations/registry.json", "state/fedprofile/populations/other.sqlite"),
        *("shop/data/visits.csv", "shop/events.db", "link/data/../data/visits.csv"),
        *("shop/tenant.toml", "shop/client.log", "shop/outbox/x.csv", "link/key", "shop/shop.enroll", "shop"),
    ],
)
def test_what_the_client_needs_itself_is_refused_there_or_not(place: TenantDirectory, name: str) -> None:
    tenant = TenantFile.model_validate(TENANT)
    path = place.root.parent / name
    with pytest.raises(ConfigError, match=r"--output .*; give another name"):
        refuse_own_file(path, "--output", place, ledger=place.ledger_of(tenant), tenant=tenant)


def test_other_names_are_free(place: TenantDirectory) -> None:
    tenant = TenantFile.model_validate(TENANT)
    for path in (place.root / "predictions.csv", place.root / "data" / "out.csv", place.root.parent / "ledgers" / "x"):
        refuse_own_file(path, "--output", place, ledger=place.ledger_of(tenant), tenant=tenant)
        require_new(path, "--output")
    (place.root.parent / "round").symlink_to("round")
    with pytest.raises(ConfigError, match="circle of links"):
        refuse_own_file(place.root.parent / "round", "--output", place, ledger=place.ledger_of(tenant))


def test_nothing_is_written_over_and_no_folder_is_made(place: TenantDirectory) -> None:
    there = place.root / "data" / "visits.csv"
    there.write_text("mine")
    dangling = place.root / "dangling"
    dangling.symlink_to("nowhere")
    for path in (there, dangling, place.root / "data"):
        for refused in (require_new, lambda path, option: write_new(path, b"new", option)):
            with pytest.raises(ConfigError, match="is there already; choose another name, or remove it first"):
                refused(path, "--export")
    for refused in (require_new, lambda path, option: write_new(path, b"new", option)):
        with pytest.raises(ConfigError, match=r"--export .*give another name"):
            refused(place.root / "absent" / "x", "--export")
    assert there.read_text() == "mine"
    assert sorted(path.name for path in place.root.iterdir()) == ["dangling", "data"]
    new = place.root / "new"
    write_new(new, b"new", "--export")
    assert new.read_bytes() == b"new" and new.stat().st_mode & 0o777 == 0o600


def test_what_a_full_disk_cuts_off_does_not_stay(place: TenantDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ConfigError, match="No space left"):
        write_new(place.root / "new", b"new", "--export")
    assert not (place.root / "new").exists()


def _refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        run_command(app, "flower-client", arguments)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1, error
    return error


def test_the_commands_refuse_such_names(
    place: TenantDirectory, card_data: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """The ledger, above all: `budget --export` over it would forget all that was spent."""
    import tomli_w

    card = FederationCard.model_validate(card_data(task={"group": None}, history={"event": ""}))
    make_key(place.key)
    invite = Invite(tenant="shop", address="localhost:1", ca="", card=card.canonical().decode(), card_hash=card.hash)
    write_model(place.invite, invite)
    place.tenant_file.write_text(tomli_w.dumps(TENANT))
    tenant = place.read_tenant_file()
    ledger = place.ledger_of(tenant)
    Ledger.open(
        ledger,
        population="shop",
        user_column=tenant.columns.user,
        epsilon=8.0,
        delta=tenant.life_delta,
        evaluation_users=0.2,
    ).close()
    before = ledger.read_bytes()
    visits = place.root / "data" / "visits.csv"
    visits.write_text("visitor,bought\nu1,yes\n")
    for suffix in ("", "-wal", ".lock"):
        error = _refused(capsys, "budget", "--dir", str(place.root), "--export", f"{ledger}{suffix}")
        assert "belongs to a ledger" in error
    assert "is there already" in _refused(capsys, "budget", "--dir", str(place.root), "--export", str(visits))
    registry = populations_folder() / "registry.json"
    assert "belongs to a ledger" in _refused(capsys, "budget", "--dir", str(place.root), "--export", str(registry))
    assert ledger.read_bytes() == before and visits.read_text().startswith("visitor") and not registry.exists()
    copy = place.root.parent / "copy"
    shutil.copy(ledger, copy)
    file = place.root / "ledger.json"
    with pytest.raises(SystemExit) as ended:
        run_command(app, "flower-client", ["budget", "--dir", str(place.root), "--export", str(file)])
    assert ended.value.code == 0 and json.loads(file.read_text())["population"] == "shop"
