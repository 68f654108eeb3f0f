"""A live federation that is killed 40 times loses nothing, and the checks that say so notice what is planted."""

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from tests.crash.arrivals import Arrival, ArrivalLog
from tests.crash.checks import Checks
from tests.crash.places import TENANTS, Places
from tests.crash.plans import Coverage, Plan

from fedprofile.client.ledger_chain import chained
from fedprofile.client.ledger_schema import Entry, read_entries
from fedprofile.common.adapters import read_arrays, write_arrays
from fedprofile.common.messages import GENESIS
from fedprofile.server.checkpoint import Checkpoint, dump_arrays, load_arrays, read_checkpoint

ROOT = Path(__file__).resolve().parents[2]
KILLS = 40
PATIENCE = 1800.0
"""Seconds after which the test gives up; nothing here is timed."""

MANY = dict.fromkeys(TENANTS, 100)
"""Faults of disks, so many that every round without a tenant is excused."""

Plant = Callable[[Places], None]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder in which federations were killed, and what the harness printed."""
    folder = tmp_path_factory.mktemp("crash")
    command = [sys.executable, "-m", "tests.crash", "--kills", str(KILLS), "--keep", folder]
    run = subprocess.run(
        [*map(str, command), "--log", str(folder / "kills.jsonl")],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    return folder, run


@pytest.mark.e2e
def test_kills_and_full_disks_lose_no_round_and_no_budget(
    killed: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, run = killed
    assert run.returncode == 0, run.stdout + run.stderr
    last = run.stdout.splitlines()[-1]
    assert last.startswith(f"kills={KILLS} under_counts=0 lost_rounds=0 double_rounds=0 "), run.stdout
    lines = [json.loads(line) for line in (folder / "kills.jsonl").read_text().splitlines()]
    kills = [line for line in lines if line["event"] == "kill"]
    assert len(kills) == KILLS
    assert {line["process"] for line in kills} == {"server", *TENANTS}
    # Not only at random moments: at points of a write as well.
    assert len({line["point"] for line in kills}) > KILLS // 5


@pytest.fixture
def places(killed: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path) -> Places:
    """A copy of the last federation, finished."""
    newest = max(killed[0].glob("federation*"), key=lambda path: path.stat().st_mtime)
    return Places(Path(shutil.copytree(newest, tmp_path / "federation")))


@pytest.mark.e2e
def test_nothing_is_found_where_nothing_is_planted(places: Places) -> None:
    assert Checks(places).run(MANY, costs=True, end=True) == []


@contextmanager
def _ledger(places: Places) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(places.ledger("acme"), isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()


def _with_sql(statement: str) -> Plant:
    def plant(places: Places) -> None:
        with _ledger(places) as connection:
            assert connection.execute(statement).rowcount

    return plant


def _with_entries(change: Callable[[list[Entry]], list[Entry]]) -> Plant:
    """Another history whose hashes are right."""

    def plant(places: Places) -> None:
        with _ledger(places) as connection:
            entries, head = change(read_entries(connection)), GENESIS
            connection.execute("DELETE FROM entries")
            for entry in entries:
                values = {name: value for name, value in asdict(entry).items() if name != "head"}
                head = chained(head, **values)
                values["head"] = head
                marks = ", ".join("?" for _ in values)
                connection.execute(f"INSERT INTO entries ({', '.join(values)}) VALUES ({marks})", list(values.values()))

    return plant


def _again(entries: list[Entry]) -> list[Entry]:
    """A question that was answered, and paid for, once more."""
    return [*entries, replace(entries[-1], sequence=entries[-1].sequence + 1)]


def _with_checkpoint(change: Callable[[Checkpoint], None]) -> Plant:
    def plant(places: Places) -> None:
        server = places.server
        found = read_checkpoint(server.checkpoint, server.card().hash, 0)
        assert found is not None
        change(found)
        found.write(server.checkpoint)

    return plant


def _with_history(change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> Plant:
    def plant(places: Places) -> None:
        path = places.server.history
        lines = change([json.loads(line) for line in path.read_text().splitlines()])
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        _with_checkpoint(lambda found: setattr(found, "history_length", path.stat().st_size))(places)

    return plant


def _without_acme(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    _trained(lines)[0]["tenants"] = ["globex"]
    return lines


def _trained(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line["kind"] == "train" and len(line["tenants"]) == len(TENANTS)]


def _with_arrival(**values: Any) -> Plant:
    """The last update of acme arrives again, with something else about it."""

    def plant(places: Places) -> None:
        log = ArrivalLog(places.received)
        last = [one for one in log.read() if one.tenant == "acme" and one.kind == "train" and one.payload][-1]
        log.append(Arrival(**{**asdict(last), **values}), log.arrays(last.payload))

    return plant


def _counted_twice(found: Checkpoint) -> None:
    found.arrays = {name: value + 0.01 for name, value in found.arrays.items()}


def _older_adapter(places: Places) -> None:
    arrays, metadata = load_arrays(places.server.adapter)
    places.server.adapter.write_bytes(dump_arrays(arrays, {**metadata, "round": "1"}))


def _other_final_adapter(places: Places) -> None:
    place = places.tenant("acme")
    latest = place.read_latest_adapter()
    assert latest is not None
    path = place.adapters / latest.file
    write_arrays(path, {name: value + 1 for name, value in read_arrays(path).items()})


LAST = "WHERE sequence = (SELECT max(sequence) FROM released)"
PLANTED: dict[str, tuple[Plant, str]] = {
    "an entry is gone": (_with_sql(f"DELETE FROM entries {LAST}"), "under_counts"),
    "an entry is edited": (_with_sql(f"UPDATE entries SET noise_multiplier = 99 {LAST}"), "under_counts"),
    "an entry is of another round": (
        _with_entries(lambda entries: [*entries[:-1], replace(entries[-1], round=entries[-1].round + 1)]),
        "under_counts",
    ),
    "entries cost less": (
        _with_entries(lambda entries: [replace(entry, noise_multiplier=99.0) for entry in entries]),
        "under_counts",
    ),
    "a payload is not recorded": (_with_sql(f"DELETE FROM released {LAST}"), "under_counts"),
    "another payload is recorded": (_with_sql(f"UPDATE released SET payload = '{'0' * 64}' {LAST}"), "under_counts"),
    "two payloads have one entry": (_with_arrival(payload="0" * 64), "under_counts"),
    "a reply comes back with other bytes": (_with_arrival(content="0" * 64), "paid_twice"),
    "a stored reply is drawn anew": (_with_entries(_again), "paid_twice"),
    "a round is gone": (
        _with_history(lambda lines: [one for one in lines if one != _trained(lines)[0]]),
        "lost_rounds",
    ),
    "a round is without a tenant": (_with_history(_without_acme), "lost_rounds"),
    "a round is there twice": (_with_history(lambda lines: [*lines, _trained(lines)[-1]]), "double_rounds"),
    "an update is counted twice": (_with_checkpoint(_counted_twice), "wrong_adapters"),
    "the last round is gone": (_with_checkpoint(lambda found: setattr(found, "round", found.round - 1)), "lost_rounds"),
    "the newest adapter is an older one": (_older_adapter, "wrong_adapters"),
    "a tenant has another adapter": (_other_final_adapter, "wrong_adapters"),
}


@pytest.mark.e2e
@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_is_found(places: Places, name: str) -> None:
    plant, kind = PLANTED[name]
    plant(places)
    found = Checks(places).run(MANY, costs=True, end=True)
    assert kind in {problem.kind for problem in found}, found


@pytest.mark.e2e
def test_what_was_there_once_must_stay(places: Places) -> None:
    checks = Checks(places)
    # Neither is known to the server, so that only memory tells.
    _with_entries(lambda entries: [*entries, replace(entries[-1], sequence=entries[-1].sequence + 1, question="")])(
        places
    )
    assert checks.run(MANY) == []
    _with_sql("DELETE FROM entries WHERE question = ''")(places)
    stored = next(places.tenant("globex").outbox.glob("*.safetensors"))
    others = [path for path in places.tenant("globex").outbox.glob("*.safetensors") if path != stored]
    stored.write_bytes(others[0].read_bytes())
    sentences = [problem.sentence for problem in checks.run(MANY)]
    assert any("was in the ledger and is not any more" in sentence for sentence in sentences)
    assert any("was replaced by" in sentence for sentence in sentences)


@pytest.mark.e2e
def test_a_tenant_is_excused_only_where_its_disk_failed(places: Places) -> None:
    def unavailable(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        line = _trained(lines)[0]
        return [
            *lines,
            {**line, "tenants": [], "refused": [{"tenant": name, "code": "unavailable"} for name in TENANTS]},
        ]

    _with_history(unavailable)(places)
    assert Checks(places).run(MANY, end=True) == []
    assert {problem.kind for problem in Checks(places).run({}, end=True)} == {"lost_rounds"}


def test_every_point_has_its_turn() -> None:
    import random

    coverage, draw = Coverage(), random.Random(1)
    assert coverage.next("client", False, draw) == Plan("kill")
    points = {f"outbox:{operation}:{phase}" for operation in ("open", "write") for phase in ("before", "after")}
    coverage.saw("client", False, points)
    for _ in range(100):
        coverage.hit("client", coverage.next("client", False, draw))
    assert all(coverage.hits["client", "kill", point] > 5 for point in points)
    # What is done cannot fail any more.
    assert all(
        not coverage.hits["client", action, point] for action in ("full", "readonly") for point in points
        if point.endswith("after")
    )  # fmt: skip
    assert coverage.reached() == (4, 4)
