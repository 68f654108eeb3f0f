"""One state for a run: kept whole over kill -9, private, without whoever has left, and gone when the run is over."""

import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprofile.client.records import ExampleSource
from fedprofile.client.segments import SegmentPlan
from fedprofile.client.snapshot import Snapshot, run_digest
from fedprofile.common.card import FederationCard
from fedprofile.common.errors import ConfigError, DataError
from fedprofile.common.interactions import Example
from fedprofile.common.tenant import TenantFile

HEADER = "who,when,month,visits,device,action,item,bought,note\n"
PLAN = SegmentPlan("0" * 64, 3.0, 1e-6, 0.5, 2.0, 1.0, 4, 2, 4, 5.0, 9)


def _line(user: str, day: int, item: str = "w1", visits: str = "3") -> str:
    return f"{user},2026-01-0{day},w2,{visits},phone,viewed,{item},no,unneeded\n"


TEXT = HEADER + _line("ann", 1) + _line("bob", 1) + _line("ann", 2, "w3") + _line("ann", 3)


@pytest.fixture
def card(card_data: Callable[..., dict[str, Any]]) -> FederationCard:
    return FederationCard.model_validate(card_data(task={"group": None}))


def _tenant(**changes: Any) -> TenantFile:
    data: dict[str, Any] = {
        "source": {"kind": "csv", "path": "data.csv"},
        "columns": {"user": "who", "label": "bought", "time": "when"},
        "reading": {"snapshot": "run"},
        "population": {"name": "p", "declared_users": 10},
        "budget": {"epsilon": 1.0},
        "run": {"epsilon": 1.0},
    }
    return TenantFile.model_validate({**data, **changes})


def _source(folder: Path, card: FederationCard, tenant: TenantFile | None = None, run: str = "run") -> ExampleSource:
    """As a started client has it, with what an earlier process left."""
    return ExampleSource(tenant or _tenant(), card, folder, snapshot=Snapshot(folder / "snapshot", run))


_values = st.dictionaries(st.sampled_from("abc"), st.text(max_size=5) | st.none(), max_size=3)
_numbers = st.dictionaries(st.sampled_from("de"), st.floats(allow_nan=False) | st.none(), max_size=2)
_vectors = st.dictionaries(st.just("f"), st.tuples(st.floats(-1, 1), st.floats(-1, 1)) | st.none(), max_size=1)
_rows = st.builds(lambda one, two, three: {**one, **two, **three}, _values, _numbers, _vectors)


@st.composite
def _examples(draw: st.DrawFn) -> list[Example]:
    """Histories share their events, and of one table all rows have the same columns, as when a source is read."""
    columns = draw(st.sets(st.sampled_from("abcdef")))

    def row() -> dict[str, Any]:
        drawn = draw(_rows)
        return {name: drawn.get(name) for name in sorted(columns)}

    found = []
    for user in draw(st.lists(st.text(min_size=1, max_size=3), max_size=8)):
        events = [row() for _ in range(draw(st.integers(0, 4)))]
        found.append(Example(user, row(), tuple(events), draw(st.integers(-1, 9)), draw(st.integers(0, 3))))
        found.append(Example(user, row(), tuple(events[1:]), 0, 0))
    return found


@settings(deadline=None, max_examples=60)
@given(_examples())
def test_what_is_written_is_read(examples: list[Example]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        snapshot = Snapshot(Path(folder) / "snapshot", "run")
        snapshot.write(examples)
        assert snapshot.read() == examples


@pytest.mark.parametrize("kind", ["csv", "sql"])
def test_all_rounds_and_restarts_see_the_first_state(tmp_path: Path, card: FederationCard, kind: str) -> None:
    (tmp_path / "data.csv").write_text(TEXT)
    tenant = _tenant()
    if kind == "sql":
        _to_sqlite(tmp_path, TEXT)
        tenant = _tenant(source={"kind": "sql", "url": "sqlite:///data.db", "query": "SELECT * FROM data"})
    source = _source(tmp_path, card, tenant)
    source.validate()
    first = source.news()
    assert first is not None and len(first) == 4
    changed = TEXT.replace("w3", "w9").replace("bob,2026-01-01", "bob,2026-01-09") + _line("eve", 1) + _line("bob", 4)
    for text in (changed, changed.replace(",3,phone", ",not a number,phone")):
        (tmp_path / "data.csv").write_text(text)
        if kind == "sql":
            _to_sqlite(tmp_path, text)
        assert source.news() in (None, first)
        assert source.news(again=True) == first
        # As after kill -9: a new process, which starts strictly, though a row is wrong by now.
        started = _source(tmp_path, card, tenant)
        started.validate()
        assert started.news() == first
    with pytest.raises(DataError):
        _source(tmp_path, card, tenant, run="another run").validate()


def _to_sqlite(folder: Path, text: str) -> None:
    names, *rows = (line.split(",") for line in text.splitlines())
    with closing(sqlite3.connect(folder / "data.db")) as database, database:
        database.execute("DROP TABLE IF EXISTS data")
        database.execute(f"CREATE TABLE data ({', '.join(f'{name!r}' for name in names)})")
        database.executemany(f"INSERT INTO data VALUES ({', '.join('?' * len(names))})", rows)


def test_without_the_setting_each_round_sees_the_source(tmp_path: Path, card: FederationCard) -> None:
    (tmp_path / "data.csv").write_text(TEXT)
    source = ExampleSource(_tenant(reading={"snapshot": "round"}), card, tmp_path)
    source.validate()
    source.news()
    (tmp_path / "data.csv").write_text(TEXT + _line("eve", 1))
    assert len(source.news() or []) == 5
    assert not (tmp_path / "snapshot").exists()


def test_who_has_left_the_source_leaves_the_snapshot_and_does_not_come_back(
    tmp_path: Path, card: FederationCard
) -> None:
    (tmp_path / "data.csv").write_text(TEXT)
    source = _source(tmp_path, card)
    source.validate()
    first = source.news() or []
    (tmp_path / "data.csv").write_text(HEADER + _line("bob", 7, "w8"))
    assert source.news() == [one for one in first if one.user == "bob"]
    assert b"ann" not in b"".join(_cells(tmp_path))
    (tmp_path / "data.csv").write_text(TEXT)
    assert source.news(again=True) == [one for one in first if one.user == "bob"]
    # The user may also leave while no client runs.
    (tmp_path / "data.csv").write_text(HEADER + _line("eve", 1))
    started = _source(tmp_path, card)
    started.validate()
    assert started.news() == []
    assert b"bob" not in b"".join(_cells(tmp_path))


def _cells(folder: Path) -> list[bytes]:
    """Everything that stands in the snapshot's folder, unpacked where it can be."""
    found = []
    for path in (folder / "snapshot").iterdir():
        found.append(path.read_bytes())
        if path.suffix == ".parquet":
            found.append(repr(pyarrow.parquet.read_table(path).to_pylist()).encode())
    return found


def test_a_source_that_cannot_be_read_is_not_answered_from_the_snapshot(tmp_path: Path, card: FederationCard) -> None:
    """Nobody could tell then who has left."""
    (tmp_path / "data.csv").write_text(TEXT)
    source = _source(tmp_path, card)
    source.validate()
    source.news()
    (tmp_path / "data.csv").unlink()
    with pytest.raises(DataError, match="cannot be read"):
        source.news()
    (tmp_path / "data.csv").write_text("when,month\n2026-01-01,w1\n")
    with pytest.raises(DataError, match="column 'who' is missing"):
        source.news()


def test_it_is_for_the_owner_alone_and_holds_only_what_the_card_needs(tmp_path: Path, card: FederationCard) -> None:
    (tmp_path / "data.csv").write_text(TEXT)
    _source(tmp_path, card).validate()
    assert stat.S_IMODE((tmp_path / "snapshot").stat().st_mode) == 0o700
    [path] = (tmp_path / "snapshot").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    everything = b"".join(_cells(tmp_path))
    assert b"ann" in everything and b"unneeded" not in everything and b"note" not in everything


@pytest.mark.parametrize("content", [b"", b"PAR1", b"\xff" * 1000, None])
def test_what_is_damaged_is_as_none(tmp_path: Path, content: bytes | None) -> None:
    snapshot = Snapshot(tmp_path / "snapshot", "run")
    snapshot.write([Example("ann", {"a": "b"})])
    path = tmp_path / "snapshot" / "examples.parquet"
    path.write_bytes(path.read_bytes()[:-9] if content is None else content)
    assert snapshot.read() is None


def test_what_was_half_written_is_never_read_and_is_deleted(tmp_path: Path) -> None:
    snapshot = Snapshot(tmp_path / "snapshot", "run")

    def write() -> None:
        snapshot.write([Example("bob", {})])

    for end in (write, snapshot.remove):
        snapshot.write([Example("ann", {})])
        (tmp_path / "snapshot" / ".examples.parquet.123.tmp").write_bytes(b"half of alice")
        assert snapshot.read() == [Example("ann", {})]
        end()
        assert not list((tmp_path / "snapshot").glob(".*"))
    assert snapshot.read() is None and not list((tmp_path / "snapshot").iterdir())


_WRITER = """
import sys
from pathlib import Path
from fedprofile.client.snapshot import Snapshot
from fedprofile.common.interactions import Example
snapshot = Snapshot(Path(sys.argv[1]), "run")
number = 0
while True:
    number += 1
    snapshot.write([Example(str(number), {"a": "x" * 1000})] * (2000 + number % 7))
    print(number, flush=True)
"""


def test_after_kill_9_there_is_a_whole_one(tmp_path: Path) -> None:
    folder = tmp_path / "snapshot"
    for kill in range(6):
        with subprocess.Popen([sys.executable, "-c", _WRITER, folder], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            done = [writer.stdout.readline() for _ in range(2 + kill)]
            writer.send_signal(signal.SIGKILL)
        found = Snapshot(folder, "run").read()
        assert found is not None and int(found[0].user) >= int(done[-1])
        assert len(found) == 2000 + int(found[0].user) % 7 and len({one.user for one in found}) == 1


def test_it_is_of_one_run_and_one_source(tmp_path: Path) -> None:
    secret = {"kind": "sql", "url": "postgresql+psycopg://a:wrong-horse@h/b", "query": "SELECT 1"}
    runs = [
        run_digest(tenant, plan, tmp_path)
        for tenant, plan in (
            (_tenant(), PLAN),
            (_tenant(), replace(PLAN, card_hash="1" * 64)),
            (_tenant(), replace(PLAN, epsilon=2.0)),
            (_tenant(source={"kind": "csv", "path": "other.csv"}), PLAN),
            (_tenant(events={"kind": "csv", "path": "other.csv"}), PLAN),
            (_tenant(columns={"user": "who", "label": "item", "time": "when"}), PLAN),
            (_tenant(source=secret), PLAN),
        )
    ]
    assert len(set(runs)) == len(runs)
    assert runs[0] == run_digest(_tenant(budget={"epsilon": 5.0}), replace(PLAN, noise_multiplier=2.01), tmp_path)
    changed = {**secret, "url": "postgresql+psycopg://a:new-horse@h/b"}
    assert runs[-1] == run_digest(_tenant(source=changed), PLAN, tmp_path)
    Snapshot(tmp_path / "snapshot", runs[0]).write([Example("ann", {})])
    assert Snapshot(tmp_path / "snapshot", runs[1]).read() is None


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    (tmp_path / "snapshot").write_text("a file where a folder should be")
    with pytest.raises(ConfigError, match="the run's snapshot cannot be written"):
        Snapshot(tmp_path / "snapshot", "run").write([])
