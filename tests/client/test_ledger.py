"""The ledger: written before the draw, one writer, caps, marks, and what it says."""

import json
import signal
import sqlite3
import subprocess
import sys
import textwrap
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fedprofile.client.budget_text import budget_text
from fedprofile.client.ledger import Ledger
from fedprofile.client.ledger_chain import chained
from fedprofile.client.ledger_summary import summary
from fedprofile.client.segments import SegmentPlan
from fedprofile.common.accounting import MechanismEvent, compose
from fedprofile.common.errors import BudgetRefusal, ConfigError, RefusalCode, ReleaseError
from fedprofile.common.messages import GENESIS, Kind, LedgerMark

PLAN = SegmentPlan(
    card_hash="a" * 64,
    epsilon=3.0,
    delta=2e-6,
    sample_rate=0.1,
    noise_multiplier=2.0,
    clip_norm=1.0,
    records_per_user=4,
    local_steps=10,
    cap_steps=30,
    evaluation_noise_multiplier=5.0,
    cap_tables=2,
)
QUESTION = "b" * 64


def _open(path: Path, **changes: object) -> Ledger:
    settings: dict[str, object] = {
        "population": "shop",
        "user_column": "user",
        "epsilon": 8.0,
        "delta": 1e-5,
        "evaluation_users": 0.2,
    }
    return Ledger.open(path, **{**settings, **changes})  # type: ignore[arg-type]


def test_what_is_reserved_is_there_after_kill_9(tmp_path: Path) -> None:
    """A real process reserves and is killed at that very moment, before it could draw or close anything."""
    path = tmp_path / "shop.sqlite"
    script = f"""
        import os, signal
        from pathlib import Path
        from fedprofile.client.ledger import Ledger
        from fedprofile.client.segments import SegmentPlan
        from fedprofile.common.messages import Kind
        ledger = Ledger.open(
            Path({str(path)!r}), population="shop", user_column="user", epsilon=8.0, delta=1e-5, evaluation_users=0.2
        )
        segment = ledger.open_segment({PLAN!r})
        for number in (1, 2):
            entry = ledger.reserve(segment, Kind.TRAIN, number, {QUESTION!r})
        print(entry.sequence, entry.head, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    sequence, head = done.stdout.split()
    with _open(path) as ledger:
        assert ledger.mark() == LedgerMark(int(sequence), head)
        segment = ledger.open_segment(PLAN)
        assert ledger.reserve(segment, Kind.TRAIN, 3, QUESTION).sequence == 3
        with pytest.raises(BudgetRefusal):
            ledger.reserve(segment, Kind.TRAIN, 4, QUESTION)
    assert [entry.round for entry in summary(path).releases] == [1, 2, 3]


def test_commits_reach_the_disk(tmp_path: Path) -> None:
    with _open(tmp_path / "x.sqlite") as ledger:
        connection = ledger._connection
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)


def test_a_second_writer_is_refused_and_a_reader_is_not(tmp_path: Path) -> None:
    path = tmp_path / "shop.sqlite"
    with _open(path) as ledger:
        ledger.open_segment(PLAN)
        with pytest.raises(ConfigError, match="another process is writing"):
            _open(path)
        script = f"""
            import sys
            from pathlib import Path
            from fedprofile.client.ledger import Ledger
            from fedprofile.common.errors import ConfigError
            try:
                Ledger.open(
                    Path({str(path)!r}), population="shop", user_column="user", epsilon=8.0, delta=1e-5,
                    evaluation_users=0.2,
                )
            except ConfigError as error:
                sys.exit(error.exit_code)
        """
        assert subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False).returncode == 2
        assert len(summary(path).segments) == 1
    _open(path).close()


def test_files_are_for_the_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "populations" / "shop.sqlite"
    with _open(path) as ledger:
        ledger.open_segment(PLAN)
        assert path.parent.stat().st_mode & 0o777 == 0o700
        assert {file.stat().st_mode & 0o077 for file in path.parent.iterdir()} == {0}


def test_segments_add_and_stop_at_the_lifes_epsilon(tmp_path: Path) -> None:
    with _open(tmp_path / "x.sqlite") as ledger:
        first = ledger.open_segment(PLAN)
        second = ledger.open_segment(replace(PLAN, card_hash="c" * 64))
        assert (first.number, second.number) == (1, 2)
        with pytest.raises(BudgetRefusal, match=r"epsilon=3 .* would exceed .* epsilon=8 .* taken epsilon=6"):
            ledger.open_segment(replace(PLAN, card_hash="d" * 64))
        assert ledger.open_segment(replace(PLAN, card_hash="d" * 64, epsilon=2.0)).number == 3


def test_segments_add_and_stop_at_the_lifes_delta(tmp_path: Path) -> None:
    with _open(tmp_path / "x.sqlite") as ledger:
        ledger.open_segment(replace(PLAN, epsilon=0.1, delta=6e-6))
        with pytest.raises(BudgetRefusal):
            ledger.open_segment(replace(PLAN, epsilon=0.2, delta=5e-6))


def test_a_lifes_budget_can_be_used_up_exactly(tmp_path: Path) -> None:
    with _open(tmp_path / "x.sqlite", epsilon=0.3) as ledger:
        for share in range(3):
            ledger.open_segment(replace(PLAN, card_hash=f"{share}" * 64, epsilon=0.1, delta=1e-5 / 3))
        with pytest.raises(BudgetRefusal):
            ledger.open_segment(replace(PLAN, card_hash="9" * 64, epsilon=1e-4, delta=1e-12))


def test_the_same_card_and_settings_are_the_same_segment_with_its_first_noise(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    with _open(path) as ledger:
        opened = ledger.open_segment(PLAN)
    with _open(path) as ledger:
        again = ledger.open_segment(replace(PLAN, noise_multiplier=2.0004))
        assert again == opened and again.plan.noise_multiplier == 2.0
        assert ledger.segment_of(PLAN) == opened
        assert ledger.segment_of(replace(PLAN, clip_norm=2.0)) is None
        assert ledger.open_segment(replace(PLAN, clip_norm=2.0)).number == 2


def test_caps_hold_for_steps_and_for_tables_apart(tmp_path: Path) -> None:
    with _open(tmp_path / "x.sqlite") as ledger:
        segment = ledger.open_segment(PLAN)
        for number in (1, 2, 3):
            ledger.reserve(segment, Kind.TRAIN, number, QUESTION)
        before = ledger.mark()
        with pytest.raises(BudgetRefusal, match=r"30 \+ 10 steps would exceed the 30"):
            ledger.reserve(segment, Kind.TRAIN, 4, QUESTION)
        assert ledger.mark() == before
        for number in (0, 3):
            ledger.reserve(segment, Kind.EVALUATE, number, QUESTION)
        with pytest.raises(BudgetRefusal):
            ledger.reserve(segment, Kind.EVALUATE, 3, QUESTION)


def test_budget_fraction_and_name_are_fixed_for_life(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    _open(path).close()
    for change in ({"epsilon": 9.0}, {"delta": 2e-5}, {"evaluation_users": 0.3}, {"population": "other"}):
        with pytest.raises(ConfigError):
            _open(path, **change)
    with pytest.raises(ConfigError, match=r"columns.user='session' differs from 'user', by which .* write user = "):
        _open(path, user_column="session")
    _open(path).close()


def test_a_raised_budget_is_for_new_segments_and_the_old_one_stays_on_record(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    with _open(path, epsilon=3.0) as ledger:
        first = ledger.open_segment(PLAN)
        ledger.reserve(first, Kind.TRAIN, 1, QUESTION)
        for epsilon, delta in ((3.0, 1e-5), (2.0, 2e-5), (4.0, 9e-6)):
            with pytest.raises(ConfigError, match="is no raise"):
                ledger.raise_budget(epsilon, delta, "asked for")
        for reason in ("", " ", "asked for\nReleases: 0", "asked\r", "\x1b[2K", "asked\u2028for", "\u202e"):
            with pytest.raises(ConfigError, match="reason"):
                ledger.raise_budget(5.0, 1e-5, reason)
        assert ledger.raise_budget(5.0, 1e-5, "asked for").after_sequence == 1
        # The open run keeps its share, and a new one takes what was added and no more.
        assert ledger.open_segment(PLAN) == first
        with pytest.raises(BudgetRefusal, match="epsilon=5"):
            ledger.open_segment(replace(PLAN, card_hash="c" * 64))
        assert ledger.open_segment(replace(PLAN, card_hash="c" * 64, epsilon=2.0)).number == 2
    with pytest.raises(ConfigError, match=r"budget.epsilon=3 differs from 5"):
        _open(path, epsilon=3.0)
    _open(path, epsilon=5.0).close()
    assert [budget.epsilon for budget in summary(path).budgets] == [3.0, 5.0]


def test_the_split_is_fixed_keyed_and_of_the_asked_size(tmp_path: Path) -> None:
    names = [f"user-{number}" for number in range(5000)]
    with _open(tmp_path / "a.sqlite") as ledger:
        first = [ledger.evaluation_user(name) for name in names]
    with _open(tmp_path / "a.sqlite") as ledger:
        assert [ledger.evaluation_user(name) for name in names] == first
    with _open(tmp_path / "b.sqlite") as ledger:
        other = [ledger.evaluation_user(name) for name in names]
    assert abs(sum(first) / len(names) - 0.2) < 0.03
    # Independent keys agree on 0.2 * 0.2 + 0.8 * 0.8 of the users.
    assert abs(sum(a == b for a, b in zip(first, other, strict=True)) / len(names) - 0.68) < 0.04
    splits = []
    for file in ("c.sqlite", "d.sqlite"):
        with _open(tmp_path / file, split_key=b"rehearsal") as ledger:
            splits.append([ledger.evaluation_user(name) for name in names])
    assert splits[0] == splits[1]


def test_marks_that_the_ledger_knows_pass(tmp_path: Path) -> None:
    with _open(tmp_path / "x.sqlite") as ledger:
        segment = ledger.open_segment(PLAN)
        ledger.check_mark(LedgerMark())
        marks = []
        for number in (1, 2):
            ledger.reserve(segment, Kind.TRAIN, number, QUESTION)
            marks.append(ledger.mark())
        assert [mark.sequence for mark in marks] == [1, 2]
        for mark in marks:
            ledger.check_mark(mark)


@pytest.mark.parametrize(
    "edit",
    [
        "UPDATE entries SET steps = 1 WHERE sequence = 1",
        "UPDATE entries SET time = '2026-01-01T00:00:00+00:00' WHERE sequence = 2",
        "UPDATE entries SET salt = (SELECT salt FROM entries WHERE sequence = 2) WHERE sequence = 1",
        "DELETE FROM entries WHERE sequence = 1",
        "UPDATE budgets SET reason = 'asked for by the users'",
        "UPDATE budgets SET after_sequence = 1",
    ],
)
def test_an_edited_ledger_is_noticed(tmp_path: Path, edit: str) -> None:
    path = tmp_path / "x.sqlite"
    with _open(path) as ledger:
        segment = ledger.open_segment(PLAN)
        for number in (1, 2):
            ledger.reserve(segment, Kind.TRAIN, number, QUESTION)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA foreign_keys = 0")
        connection.execute(edit)
    with pytest.raises(ConfigError, match="do not match their hashes"):
        _open(path)


def test_a_head_cannot_be_searched_from_what_a_server_knows_or_guesses(tmp_path: Path) -> None:
    """Two entries that agree in every other field have different heads, because each has a salt of its own."""
    fields = []
    for file in ("a.sqlite", "b.sqlite"):
        with _open(tmp_path / file) as ledger:
            fields.append(asdict(ledger.reserve(ledger.open_segment(PLAN), Kind.TRAIN, 1, QUESTION)))
    first, second = ({name: value for name, value in entry.items() if name != "head"} for entry in fields)
    assert chained(GENESIS, **first) == fields[0]["head"]
    # Even with the key of the split, which the other chains start from.
    same = ("time", "budget_head", "segment_head", "released_head")
    second |= {name: first[name] for name in same}
    public = {name: value for name, value in first.items() if name != "salt"}
    assert public == {name: value for name, value in second.items() if name != "salt"}
    # Everything is guessed right, and the salts are left out, taken from elsewhere, or empty.
    for guess in (public, {**public, "salt": second["salt"]}, {**public, "salt": ""}):
        assert chained(GENESIS, **guess) != fields[0]["head"]
    assert [len(bytes.fromhex(str(entry["salt"]))) for entry in fields] == [16, 16]
    assert first["salt"] != second["salt"]


def test_every_entry_has_a_salt_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    with _open(path) as ledger:
        segment = ledger.open_segment(PLAN)
        for number in (1, 2, 3):
            ledger.reserve(segment, Kind.TRAIN, number, QUESTION)
    told = summary(path)
    assert len({entry.salt for entry in told.releases}) == 3
    assert not any(entry.salt in json.dumps(told.as_dict()) for entry in told.releases)


def test_symbolic_links_share_one_lock(tmp_path: Path) -> None:
    path, link = tmp_path / "a" / "shop.sqlite", tmp_path / "b" / "shop.sqlite"
    link.parent.mkdir()
    with _open(path) as ledger:
        link.symlink_to(path)
        with pytest.raises(ConfigError, match="another process is writing"):
            _open(link)
        ledger.reserve(ledger.open_segment(PLAN), Kind.TRAIN, 1, QUESTION)
    with _open(link) as ledger:
        assert ledger.path == path.resolve() and ledger.mark().sequence == 1


def test_a_file_with_a_second_name_is_refused(tmp_path: Path) -> None:
    """A hard link would have a lock and a write-ahead log of its own: each name could spend the whole budget."""
    path, link = tmp_path / "a" / "shop.sqlite", tmp_path / "b" / "shop.sqlite"
    link.parent.mkdir()
    _open(path).close()
    link.hardlink_to(path)
    for name in (path, link):
        with pytest.raises(ConfigError, match=r"has 2 names .*remove the other name"):
            _open(name)
    link.unlink()
    _open(path).close()


def test_a_missing_or_empty_ledger_is_made_anew_only_where_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "shop.sqlite"
    with pytest.raises(ConfigError, match=r"is not there; restore its newest copy"):
        _open(path, new=False)
    assert list(tmp_path.iterdir()) == []
    path.touch()
    with pytest.raises(ConfigError, match=r"is not there; restore its newest copy"):
        _open(path, new=False)
    _open(path).close()
    _open(path, new=False).close()


def test_a_ledger_of_another_format_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    _open(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE population SET format = 1")
    for read in (_open, summary):
        with pytest.raises(ConfigError, match="format 1"):
            read(path)


def test_an_auditors_export_lets_the_chain_be_recomputed_and_holds_no_secret(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    with _open(path, split_key=b"k" * 32) as ledger:
        segment = ledger.open_segment(PLAN)
        for number in (1, 2):
            entry = ledger.reserve(segment, Kind.TRAIN, number, QUESTION)
        ledger.mark_released(LedgerMark(entry.sequence, entry.head), "e" * 64)
    found = summary(path)
    export: dict[str, Any] = json.loads(json.dumps(found.for_auditor()))
    assert export["chain_holds"] is True
    told = found.as_dict()
    assert {name for name in told if export[name] != told[name]} == {"releases"}
    for rows in (export["chains"][name] for name in ("budgets", "segments", "released")):
        head = export["chains"]["start"]
        for row in rows:
            head = chained(head, **{name: value for name, value in row.items() if name != "head"})
            assert head == row["head"]
    assert export["releases"][1]["budget_head"] == export["chains"]["budgets"][-1]["head"]
    head = GENESIS
    for row in export["releases"]:
        values = {name: value for name, value in row.items() if name not in ("head", "payload")}
        head = chained(head, **values)
        assert head == row["head"]
    assert "k" * 32 not in json.dumps(export) and (b"k" * 32).hex() not in json.dumps(export)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE entries SET steps = 1 WHERE sequence = 1")
    assert summary(path).for_auditor()["chain_holds"] is False


def test_what_is_not_a_ledger_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    path.write_bytes(b"not a database, and long enough to be looked at as one" * 100)
    with pytest.raises(ConfigError, match="is not a ledger"):
        _open(path)
    with pytest.raises(ConfigError, match="is not a ledger"):
        summary(path)
    with pytest.raises(ConfigError, match="there is no ledger"):
        summary(tmp_path / "missing.sqlite")


def test_the_summary_composes_the_releases(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    with _open(path) as ledger:
        first = ledger.open_segment(PLAN)
        second = ledger.open_segment(replace(PLAN, card_hash="c" * 64, epsilon=2.5))
        ledger.reserve(first, Kind.TRAIN, 1, QUESTION)
        entry = ledger.reserve(first, Kind.TRAIN, 2, QUESTION)
        ledger.mark_released(LedgerMark(entry.sequence, entry.head), "e" * 64)
        with pytest.raises(ReleaseError, match=r"stored reply of entry 2 is not what x.sqlite notes"):
            ledger.mark_released(LedgerMark(entry.sequence, entry.head), "f" * 64)
        ledger.reserve(first, Kind.EVALUATE, 0, QUESTION)
        ledger.reserve(second, Kind.EVALUATE, 0, QUESTION)
        ledger.count_refusal(RefusalCode.POLICY)
        ledger.count_refusal(RefusalCode.POLICY)
        ledger.count_refusal(RefusalCode.BUDGET)
        told = summary(path).as_dict()
    train = compose([MechanismEvent(0.1, 0.999 * 2.0, 20)], 2e-6).epsilon
    table = compose([MechanismEvent(1.0, 0.999 * 5.0, 1)], 2e-6).epsilon
    assert told["population"] == "shop" and told["epsilon"] == 8.0 and told["delta"] == 1e-5
    assert (told["unit"], told["adjacency"], told["accountant"]) == ("user", "add-or-remove-one", "prv")
    assert told["epsilon_train"] == pytest.approx(train)
    assert told["epsilon_evaluation"] == pytest.approx(2 * table)
    assert told["epsilon_spent"] == pytest.approx(max(train, table) + table)
    assert told["left"] == pytest.approx(8 - 3 - 2.5)
    assert told["left_in_segments"] == pytest.approx(3 + 2.5 - max(train, table) - table)
    assert told["refused"] == 3 and told["refusals"] == {"budget": 1, "policy": 2}
    segments, releases = told["segments"], told["releases"]
    assert isinstance(segments, list) and isinstance(releases, list)
    assert [row["epsilon"] for row in segments] == [3.0, 2.5]
    assert [(row["kind"], row["round"], row["steps"], row["sample_rate"]) for row in releases] == [
        ("train", 1, 10, 0.1),
        ("train", 2, 10, 0.1),
        ("evaluate", 0, 1, 1.0),
        ("evaluate", 0, 1, 1.0),
    ]
    assert [row["noise_multiplier"] for row in releases] == pytest.approx([1.998, 1.998, 4.995, 4.995])
    assert [row["payload"] for row in releases] == [None, "e" * 64, None, None]


def test_a_reading_never_shows_an_epsilon_bare(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    with _open(path) as ledger:
        segment = ledger.open_segment(PLAN)
        ledger.reserve(segment, Kind.TRAIN, 1, QUESTION)
        ledger.raise_budget(9.0, 1e-5, "asked for")
    shown = [line for line in budget_text(summary(path)).splitlines() if "epsilon" in line]
    assert len(shown) == 7
    for line in shown:
        assert all(f"{word}=" in line for word in ("delta", "unit", "adjacency", "model", "accountant")), line


def test_a_ledger_without_releases_has_spent_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    with _open(path) as ledger:
        ledger.open_segment(PLAN)
    told = summary(path)
    assert told.spent.epsilon == 0 and told.left == 5.0 and told.left_in_segments == 3.0
    assert told.releases == ()


def test_rounds_of_a_day_are_counted(tmp_path: Path) -> None:
    with _open(tmp_path / "x.sqlite") as ledger:
        segment = ledger.open_segment(PLAN)
        ledger.reserve(segment, Kind.TRAIN, 1, QUESTION)
        ledger.reserve(segment, Kind.EVALUATE, 1, QUESTION)
        today = datetime.now(UTC).date()
        assert ledger.rounds_on(today) == 1
        assert ledger.rounds_on(today.replace(year=today.year - 1, day=1)) == 0


def test_a_ledger_stores_events_and_no_composed_epsilon(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    with _open(path) as ledger:
        ledger.reserve(ledger.open_segment(PLAN), Kind.TRAIN, 1, QUESTION)
    with sqlite3.connect(path) as connection:
        columns = {row[1] for row in connection.execute("PRAGMA table_info(entries)")}
    assert "epsilon" not in columns and {"sample_rate", "noise_multiplier", "steps"} <= columns


def test_the_chain_starts_at_genesis(tmp_path: Path) -> None:
    with _open(tmp_path / "x.sqlite") as ledger:
        assert ledger.mark() == LedgerMark(0, GENESIS)


def test_a_full_disk_is_not_told_as_a_damaged_ledger(tmp_path: Path) -> None:
    """Whoever is told to restore a backup does so, and an older ledger has forgotten releases."""
    program = (
        "import resource, signal, sys; from pathlib import Path; from fedprofile.client.ledger import Ledger\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "ledger = Ledger.open(Path(sys.argv[1]), population='other', user_column='user', epsilon=3.0, delta=1e-6,\n"
        "                     evaluation_users=0.2)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "y.sqlite")], capture_output=True, text=True, check=False
    )
    assert "ConfigError" in ran.stderr and "the disk is full" in ran.stderr
    assert "restore it from a backup" not in ran.stderr
