"""A ledger that is not the newest copy: noticed from the server, the directory and the outbox, and written off."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from fedprofile.client.budget_text import losses_text
from fedprofile.client.high_water import HighWater, Marks
from fedprofile.client.ledger import Ledger
from fedprofile.client.ledger_summary import summary
from fedprofile.client.segments import SegmentPlan
from fedprofile.common.errors import BudgetRefusal, ConfigError, LedgerBehindError
from fedprofile.common.messages import Kind, LedgerMark, MessageError

PLAN = SegmentPlan(
    card_hash="a" * 64,
    epsilon=3.0,
    delta=2e-6,
    sample_rate=0.1,
    noise_multiplier=2.0,
    clip_norm=1.0,
    records_per_user=4,
    local_steps=10,
    cap_steps=100,
    evaluation_noise_multiplier=5.0,
    cap_tables=10,
)
OTHER = replace(PLAN, card_hash="d" * 64)
QUESTION = "b" * 64


def _open(path: Path, marks: Path | None = None) -> Ledger:
    return Ledger.open(
        path, population="shop", user_column="user", epsilon=8.0, delta=1e-5, evaluation_users=0.2, marks=marks
    )


def _copy(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)


def _restore(backup: Path, path: Path) -> None:
    for leftover in path.parent.glob(f"{path.name}-*"):
        leftover.unlink()
    shutil.copy(backup, path)


def _train(ledger: Ledger, count: int, plan: SegmentPlan = PLAN) -> LedgerMark:
    segment = ledger.open_segment(plan)
    for number in range(count):
        ledger.reserve(segment, Kind.TRAIN, number + 1, QUESTION)
    return ledger.mark()


def _written_off(path: Path) -> list[tuple[int, str, int]]:
    return [(row.segment, row.kind, row.steps) for row in summary(path).releases if row.written_off]


def _lost(tmp_path: Path, before: int, after: int, marks: Path | None = None) -> tuple[Path, LedgerMark]:
    """A ledger with `before` entries, restored after `after` more were made; and the last mark of these."""
    path, backup = tmp_path / "x.sqlite", tmp_path / "backup"
    with _open(path, marks) as ledger:
        _train(ledger, before)
    _copy(path, backup)
    with _open(path, marks) as ledger:
        seen = _train(ledger, after)
    _restore(backup, path)
    return path, seen


def test_a_servers_mark_of_a_lost_entry_stops_and_never_spends(tmp_path: Path) -> None:
    path, seen = _lost(tmp_path, before=1, after=1)
    with _open(path) as ledger:
        segment = ledger.open_segment(PLAN)
        with pytest.raises(LedgerBehindError, match="write-off"):
            ledger.check_mark(seen)
        assert ledger.mark().sequence == 1, "a server's mark must never make a client spend"
        # Nothing goes on in this process, whatever is asked next.
        with pytest.raises(LedgerBehindError):
            ledger.reserve(segment, Kind.TRAIN, 2, QUESTION)
        with pytest.raises(LedgerBehindError):
            ledger.check_mark(LedgerMark())


def test_after_a_write_off_the_run_goes_on_with_what_is_left(tmp_path: Path) -> None:
    path, seen = _lost(tmp_path, before=1, after=1)
    with _open(path) as ledger:
        segment = ledger.open_segment(PLAN)
        with pytest.raises(LedgerBehindError):
            ledger.check_mark(seen)
        # Nothing proves that entry 1 is shared, so both count; nobody knows their kinds, so each counts as both.
        assert ledger.missing() == 2
        assert [entry.sequence for entry in ledger.write_off()] == [3, 4]
        ledger.check_mark(seen)
        assert ledger.missing() == 0 and ledger.write_off() == ()
        for number in range(7):
            ledger.reserve(segment, Kind.TRAIN, number, QUESTION)
        with pytest.raises(BudgetRefusal):
            ledger.reserve(segment, Kind.TRAIN, 9, QUESTION)
        for number in range(8):
            ledger.reserve(segment, Kind.EVALUATE, number, QUESTION)
        with pytest.raises(BudgetRefusal):
            ledger.reserve(segment, Kind.EVALUATE, 9, QUESTION)
    assert _written_off(path) == [(1, "train", 20), (1, "evaluate", 2)]


def test_what_the_server_has_shown_bounds_the_loss(tmp_path: Path) -> None:
    """Also where the file was continued after it was restored: then its own end says nothing about what is shared."""
    path, backup = tmp_path / "x.sqlite", tmp_path / "backup"
    with _open(path) as ledger:
        shown = _train(ledger, 4)
        ledger.reserve(ledger.open_segment(PLAN), Kind.TRAIN, 5, QUESTION)
    _copy(path, backup)
    with _open(path) as ledger:
        seen = _train(ledger, 3)
    _restore(backup, path)
    with _open(path) as ledger:
        ledger.check_mark(shown)
        _train(ledger, 2)
        with pytest.raises(LedgerBehindError):
            ledger.check_mark(seen)
        # 6, 7 and 8 are lost, though the file ends at 7.
        assert (seen.sequence, ledger.mark().sequence, ledger.missing()) == (8, 7, 4)


def test_the_loss_counts_in_every_segment_and_never_beyond_a_cap(tmp_path: Path) -> None:
    path, backup = tmp_path / "x.sqlite", tmp_path / "backup"
    with _open(path) as ledger:
        _train(ledger, 9)
        ledger.open_segment(OTHER)
    _copy(path, backup)
    with _open(path) as ledger:
        seen = _train(ledger, 3, OTHER)
    _restore(backup, path)
    with _open(path) as ledger:
        with pytest.raises(LedgerBehindError):
            ledger.check_mark(seen)
        charged = ledger.losses()
        written = ledger.write_off()
        assert [charge.event for charge in charged] == [entry.event for entry in written]
        with pytest.raises(BudgetRefusal):
            ledger.reserve(ledger.open_segment(PLAN), Kind.TRAIN, 1, QUESTION)
    assert _written_off(path) == [(1, "train", 10), (1, "evaluate", 10), (2, "train", 100), (2, "evaluate", 10)]
    for reading in summary(path).segments:
        assert (reading.steps, reading.tables) == (100, 10)


def test_a_copied_ledger_with_another_history_is_noticed(tmp_path: Path) -> None:
    path, copied = tmp_path / "x.sqlite", tmp_path / "copy.sqlite"
    with _open(path) as ledger:
        ledger.open_segment(PLAN)
    _copy(path, copied)
    with _open(path) as ledger:
        seen = _train(ledger, 1)
    with _open(copied) as ledger:
        _train(ledger, 2)
        with pytest.raises(LedgerBehindError):
            ledger.check_mark(seen)
        ledger.write_off()
        ledger.check_mark(seen)
    assert _written_off(copied) == [(1, "train", 10), (1, "evaluate", 1)]


def test_a_hostile_mark_can_stop_and_leaves_the_ledger_usable(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    with _open(path) as ledger:
        ledger.open_segment(PLAN)
        for number in (2**20 + 1, 2**61, 2**62 - 1):
            with pytest.raises(MessageError, match="further ahead"):
                ledger.check_mark(LedgerMark(number, "f" * 64))
        assert ledger.missing() == 0
    for number in range(3):
        with _open(path) as ledger, pytest.raises(LedgerBehindError):
            ledger.check_mark(LedgerMark(2**20 - number, f"{number:064x}"))
    with _open(path) as ledger:
        assert ledger.mark() == LedgerMark()
        assert ledger._connection.execute("SELECT count(*) FROM foreign_marks").fetchone() == (1,)
        ledger.write_off()
        other = ledger.open_segment(OTHER)
        entry = ledger.reserve(other, Kind.TRAIN, 1, QUESTION)
        assert entry.sequence > 2**20 - 2 and ledger.mark() == LedgerMark(entry.sequence, entry.head)
    spent = summary(path).segments[0]
    assert (spent.steps, spent.tables) == (100, 10), "never beyond what the segment could have released"


def test_a_loss_that_only_the_server_claims_is_told_as_one(tmp_path: Path) -> None:
    """A server that lies could otherwise have a tenant write its budgets off."""
    path, marks = tmp_path / "x.sqlite", tmp_path / "marks"
    forged = LedgerMark(900, "f" * 64)
    with _open(path, marks) as ledger:
        _train(ledger, 1)
        with pytest.raises(LedgerBehindError, match=r"Only the server claims this: the marks .*ask the operator first"):
            ledger.check_mark(forged)
        assert ledger.only_claimed()
        assert losses_text(ledger, PLAN).startswith("Only the server claims this")
    with _open(path, marks) as ledger:
        assert ledger.only_claimed(), "it is remembered for whoever writes off"
    # Where nothing is known here the server may well be right.
    with _open(path) as ledger:
        with pytest.raises(LedgerBehindError) as refused:
            ledger.check_mark(forged)
        assert "Only the server" not in str(refused.value) and not ledger.only_claimed()


def test_a_loss_that_the_marks_know_as_well_is_not_only_claimed(tmp_path: Path) -> None:
    path, backup, marks = tmp_path / "x.sqlite", tmp_path / "backup", tmp_path / "marks"
    with _open(path, marks) as ledger:
        _train(ledger, 1)
        _copy(path, backup)
        seen = _train(ledger, 1)
        # Overwritten in place while it is open.
        _copy(backup, path)
        with pytest.raises(LedgerBehindError, match="this directory has reserved entry 2") as refused:
            ledger.check_mark(seen)
        assert "Only the server" not in str(refused.value) and not ledger.only_claimed()


def test_marks_of_directory_and_account_are_one_loss(tmp_path: Path) -> None:
    path, backup = tmp_path / "x.sqlite", tmp_path / "backup"
    marks, account = HighWater(tmp_path / "marks", "shop"), HighWater(tmp_path / "account", "shop", account=True)
    with _open(path) as ledger:
        ledger.keep_marks(marks, account)
        _train(ledger, 2)
    _copy(path, backup)
    with _open(path) as ledger:
        ledger.keep_marks(marks, account)
        _train(ledger, 2)
        ledger.keep_marks(account)
        _train(ledger, 3)
    _restore(backup, path)
    with _open(path) as ledger:
        with pytest.raises(LedgerBehindError, match="a directory of this account has reserved entry 7"):
            ledger.keep_marks(marks, account)
        # 3 to 7 are lost; the account's marks are 7, 6, 5, 3, and the directory's 4, 3, 2.
        assert ledger.missing() == 7
        ledger.write_off()
        ledger.keep_marks(marks, account)
        _train(ledger, 1)
    kept = account.read()
    assert kept is not None and kept.shown == LedgerMark()


def test_a_damaged_mark_is_refused_and_leaves_the_ledger_usable(tmp_path: Path) -> None:
    path, marks = tmp_path / "x.sqlite", tmp_path / "marks"
    damaged = LedgerMark(2**62 - 1, "f" * 64)
    HighWater(marks, "shop").write(Marks(last=damaged))
    with pytest.raises(MessageError, match="damaged"):
        _open(path, marks)
    with _open(path) as ledger:
        with pytest.raises(MessageError, match="damaged"):
            ledger.mark_released(damaged, "e" * 64)
        assert ledger.missing() == 0
    for content in ("", "{}", '{"last": {"sequence": -1, "head": "0"}}', '{"last": 1}', "\\xff"):
        (marks / "shop.json").write_text(content)
        with pytest.raises((ConfigError, MessageError)):
            _open(path, marks)


def test_a_restored_backup_is_noticed_without_the_server(tmp_path: Path) -> None:
    marks = tmp_path / "tenant" / "marks"
    path, _ = _lost(tmp_path, before=2, after=2, marks=marks)
    with pytest.raises(
        LedgerBehindError, match=r"ends at entry 2, and this directory has reserved entry 4 .*write-off"
    ):
        _open(path, marks)
    assert summary(path).releases[-1].sequence == 2


def test_the_directorys_marks_say_how_much_was_lost(tmp_path: Path) -> None:
    """Bounded by twice the loss, also where another directory has continued the restored file."""
    marks = tmp_path / "marks"
    path, lost = _lost(tmp_path, before=4, after=3, marks=marks)
    with _open(path) as ledger:
        assert _train(ledger, 2, OTHER).sequence == 6
    with _open(path) as ledger:
        with pytest.raises(LedgerBehindError):
            ledger.keep_marks(HighWater(marks, "shop"))
        # 5, 6 and 7 are lost; the marks kept are 7, 6, 5 and 3.
        assert ledger.missing() == 4
        ledger.write_off()
    with _open(path, marks) as ledger:
        # What a server that lags behind the directory shows is of the same history.
        kept = HighWater(marks, "shop").read()
        assert kept is not None and [mark.sequence for mark in (kept.last, *kept.earlier)] == [7, 6, 5, 3]
        for mark in (lost, *kept.earlier):
            ledger.check_mark(mark)
        _train(ledger, 1)
    _open(path, marks).close()


def test_a_mark_is_on_the_disk_before_anything_can_be_drawn(tmp_path: Path) -> None:
    """Killed right after the reservation, whose write-ahead log is then lost, as where someone deletes it."""
    path, marks = tmp_path / "x.sqlite", tmp_path / "marks"
    script = f"""
        import os, signal
        from pathlib import Path
        from fedprofile.client.ledger import Ledger
        from fedprofile.client.segments import SegmentPlan
        from fedprofile.common.messages import Kind
        ledger = Ledger.open(
            Path({str(path)!r}), population="shop", user_column="user", epsilon=8.0, delta=1e-5, evaluation_users=0.2,
            marks=Path({str(marks)!r}),
        )
        segment = ledger.open_segment({PLAN!r})
        ledger._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        ledger.reserve(segment, Kind.TRAIN, 1, {QUESTION!r})
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert {file.stat().st_mode & 0o077 for file in marks.iterdir()} == {0}
    for ending in ("-wal", "-shm"):
        path.with_name(path.name + ending).unlink()
    with pytest.raises(LedgerBehindError, match=r"ends at entry 0, and this directory has reserved entry 1"):
        _open(path, marks)


def test_a_crash_between_reservation_and_mark_is_no_false_alarm(tmp_path: Path) -> None:
    path, marks = tmp_path / "x.sqlite", tmp_path / "marks"
    with _open(path, marks) as ledger:
        _train(ledger, 1)
        before = (marks / "shop.json").read_bytes()
        _train(ledger, 1)
    (marks / "shop.json").write_bytes(before)
    with _open(path, marks) as ledger:
        assert ledger.mark().sequence == 2


def test_no_reservation_without_its_mark(tmp_path: Path) -> None:
    """Where the mark cannot be written nothing may be drawn; the entry stays, and counts."""
    path, marks = tmp_path / "x.sqlite", tmp_path / "marks"
    with _open(path, marks) as ledger:
        segment = ledger.open_segment(PLAN)
        shutil.rmtree(marks)
        marks.touch()
        with pytest.raises(OSError):
            ledger.reserve(segment, Kind.TRAIN, 1, QUESTION)
    assert [row.sequence for row in summary(path).releases] == [1]


@pytest.mark.parametrize("how", ["overwritten", "replaced", "removed"])
def test_a_ledger_that_is_exchanged_while_it_is_open_is_noticed(tmp_path: Path, how: str) -> None:
    path, marks, backup = tmp_path / "x.sqlite", tmp_path / "marks", tmp_path / "backup"
    with _open(path, marks) as ledger:
        segment = ledger.open_segment(PLAN)
        _copy(path, backup)
        ledger.reserve(segment, Kind.TRAIN, 1, QUESTION)
        if how == "overwritten":
            _copy(backup, path)
        elif how == "replaced":
            os.replace(backup, path)  # noqa: PTH105
        else:
            path.unlink()
        for _ in range(2):
            with pytest.raises(LedgerBehindError):
                ledger.reserve(segment, Kind.TRAIN, 2, QUESTION)


def test_a_finished_reply_whose_entry_is_lost_is_not_released(tmp_path: Path) -> None:
    path, lost = _lost(tmp_path, before=1, after=1)
    with _open(path) as ledger:
        # Another entry has the lost one's number by now; the hash tells them apart.
        assert _train(ledger, 1).sequence == lost.sequence
        with pytest.raises(LedgerBehindError, match="a finished reply has entry 2"):
            ledger.mark_released(lost, "e" * 64)
        with pytest.raises(LedgerBehindError):
            ledger.check_mark(LedgerMark())
        ledger.write_off()
        # Its cost is counted now.
        ledger.mark_released(lost, "e" * 64)
    assert summary(path).payloads == {}


def test_populations_of_one_directory_have_marks_of_their_own(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    with _open(tmp_path / "shop.sqlite", marks) as ledger:
        _train(ledger, 2)
    with Ledger.open(
        tmp_path / "clinic.sqlite",
        population="clinic",
        user_column="user",
        epsilon=8.0,
        delta=1e-5,
        evaluation_users=0.2,
        marks=marks,
    ) as ledger:
        _train(ledger, 1)
    _open(tmp_path / "shop.sqlite", marks).close()
    assert sorted(file.name for file in marks.iterdir()) == ["clinic.json", "shop.json"]
