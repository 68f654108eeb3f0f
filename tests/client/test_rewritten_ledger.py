"""A ledger whose rows were edited, with its hashes as they were or made right again."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from tests.client.rewritten import edit, rewrite

from fedprofile.client import ledger_schema
from fedprofile.client.high_water import HighWater, Marks
from fedprofile.client.ledger import Ledger
from fedprofile.client.ledger_summary import summary
from fedprofile.client.second_accountant import verify
from fedprofile.client.segments import SegmentPlan
from fedprofile.common.accounting import solve_noise_multiplier
from fedprofile.common.errors import ConfigError, LedgerBehindError
from fedprofile.common.messages import Kind, LedgerMark

PLAN = SegmentPlan(
    card_hash="a" * 64,
    epsilon=3.0,
    delta=2e-6,
    sample_rate=0.1,
    noise_multiplier=solve_noise_multiplier(3.0, 2e-6, 0.1, 40),
    clip_norm=1.0,
    records_per_user=4,
    local_steps=10,
    cap_steps=40,
    evaluation_noise_multiplier=solve_noise_multiplier(3.0, 2e-6, 1.0, 3),
    cap_tables=3,
)
QUESTION, PAYLOAD = "b" * 64, "e" * 64


def _open(path: Path, marks: Path | None = None, epsilon: float = 8.0) -> Ledger:
    return Ledger.open(
        path,
        population="shop",
        user_column="user",
        epsilon=epsilon,
        delta=1e-5,
        evaluation_users=0.2,
        marks=marks,
    )


def _released(ledger: Ledger, number: int) -> None:
    entry = ledger.reserve(ledger.open_segment(PLAN), Kind.TRAIN, number, QUESTION)
    ledger.mark_released(LedgerMark(entry.sequence, entry.head), PAYLOAD)


@pytest.fixture
def used(tmp_path: Path) -> Path:
    """A ledger with two runs, a raise, and three releases; its marks are in `marks`."""
    path = tmp_path / "x.sqlite"
    with _open(path, tmp_path / "marks") as ledger:
        _released(ledger, 1)
        _released(ledger, 2)
        ledger.open_segment(replace(PLAN, card_hash="c" * 64))
        ledger.raise_budget(9.0, 1e-5, "asked for")
        _released(ledger, 3)
    return path


EDITS: dict[str, tuple[str, ...]] = {
    "a run is charged less": ("UPDATE segments SET epsilon = 0.01, delta = 1e-9",),
    "a run without releases is charged less": ("UPDATE segments SET epsilon = 0.01 WHERE number = 2",),
    "a run has other noise": ("UPDATE segments SET noise_multiplier = 500, evaluation_noise_multiplier = 5000",),
    "a run has a larger cap": ("UPDATE segments SET cap_steps = 400",),
    "a run has another number": ("UPDATE segments SET number = number + 6",),
    "a run is gone": ("DELETE FROM segments WHERE number = 2",),
    "the split has another key": ("UPDATE population SET key = zeroblob(32)",),
    "the users are counted by another column": ("UPDATE population SET user_column = 'session'",),
    "payloads are others": (f"UPDATE released SET payload = '{'0' * 64}'",),
    "a payload is of another entry": ("UPDATE released SET sequence = 9 WHERE sequence = 1",),
    "a payload is gone": ("DELETE FROM released WHERE sequence = 1",),
    "the first budget was higher": ("UPDATE budgets SET epsilon = 9.0 WHERE number = 1",),
    "a raise was earlier": ("UPDATE budgets SET after_sequence = 0 WHERE number = 2",),
    "a raise is erased": (
        "DELETE FROM budgets WHERE number = 1",
        "UPDATE budgets SET number = 1, after_sequence = 0, reason = 'when the ledger was made'",
    ),
    "entries cost less": ("UPDATE entries SET noise_multiplier = 500",),
    "the budget of an entry is another": ("UPDATE entries SET budget_head = (SELECT max(head) FROM segments)",),
}


@pytest.mark.parametrize("name", EDITS)
def test_whatever_is_edited_is_noticed_when_the_ledger_is_opened_and_verified(used: Path, name: str) -> None:
    edit(used, *EDITS[name])
    column = "session" if "column" in name else "user"
    with pytest.raises(ConfigError, match="do not match their hashes"):
        Ledger.open(used, population="shop", user_column=column, epsilon=9.0, delta=1e-5, evaluation_users=0.2)
    assert not summary(used).chain_holds


def test_a_ledger_without_a_budget_is_one_sentence(used: Path) -> None:
    edit(used, "DELETE FROM budgets")
    with pytest.raises(ConfigError, match="do not match their hashes"):
        _open(used)
    with pytest.raises(ConfigError, match="holds no budget"):
        summary(used)


UNANCHORED = {"the budget of an entry is another"}
"""Is put right where the hashes are."""
RENUMBERED = {"a run has another number", "a payload is of another entry", "a payload is gone", "a run is gone"}
"""Leaves gaps that no hash can hide."""


@pytest.mark.parametrize("name", sorted(EDITS.keys() - UNANCHORED - RENUMBERED))
def test_where_all_hashes_were_made_right_again_the_marks_tell(used: Path, name: str) -> None:
    """What travelled to the server, what the outbox holds and what the marks hold is the head of an entry, and each
    entry vouches for all that was promised and released before it."""
    kept = HighWater(used.parent / "marks", "shop").read()
    assert kept is not None and kept.last.sequence == 3
    if "payload" in name:
        # The last entry vouches for what was noted before it was made.
        rewrite(used, f"{EDITS[name][0]} WHERE sequence < 3")
    else:
        rewrite(used, *EDITS[name])
    column = "session" if "column" in name else "user"
    with (
        Ledger.open(used, population="shop", user_column=column, epsilon=9.0, delta=1e-5, evaluation_users=0.2) as own,
        pytest.raises(LedgerBehindError),
    ):
        own.check_mark(kept.last)
    with (
        Ledger.open(used, population="shop", user_column=column, epsilon=9.0, delta=1e-5, evaluation_users=0.2) as own,
        pytest.raises(LedgerBehindError, match="this directory has reserved entry 3 of another or newer copy"),
    ):
        own.keep_marks(HighWater(used.parent / "marks", "shop"))
    if name == "entries cost less":
        problems = verify(summary(used), [kept]).problems
        assert "release 3, which was reserved here, is another one or not there" in problems


def test_a_raise_that_no_hash_vouches_for_by_an_entry_is_in_the_marks(tmp_path: Path) -> None:
    """Rewritten before the next reservation, or before the first."""
    path, marks = tmp_path / "x.sqlite", tmp_path / "marks"
    _open(path, marks).close()
    rewrite(path, "UPDATE budgets SET epsilon = 20")
    with pytest.raises(LedgerBehindError, match=r"lacks a budget that was known in this directory.*write-off"):
        _open(path, marks, epsilon=20.0)
    rewrite(path, "UPDATE budgets SET epsilon = 8")
    with _open(path, marks) as ledger:
        _released(ledger, 1)
        ledger.raise_budget(9.0, 1e-5, "asked for")
    rewrite(path, "UPDATE budgets SET epsilon = 20, reason = 'for the users' WHERE number = 2")
    with pytest.raises(LedgerBehindError, match="lacks a budget"):
        _open(path, marks, epsilon=20.0)
    kept = HighWater(marks, "shop").read()
    assert kept is not None
    assert verify(summary(path), [kept]).problems == ("a budget that was known here is another one or not there",)


def test_a_budget_that_is_lost_stops_until_a_person_takes_the_one_that_is_there(tmp_path: Path) -> None:
    path, marks = tmp_path / "x.sqlite", tmp_path / "marks"
    with _open(path, marks) as ledger:
        ledger.raise_budget(9.0, 1e-5, "asked for")
    edit(path, "DELETE FROM budgets WHERE number = 2")
    for _ in range(2):
        with pytest.raises(LedgerBehindError, match="lacks a budget"):
            _open(path, marks)
    with _open(path) as ledger:
        with pytest.raises(LedgerBehindError):
            ledger.keep_marks(HighWater(marks, "shop"))
        assert ledger.lacks_budget() and ledger.missing() == 0
        assert ledger.write_off() == ()
        assert not ledger.lacks_budget()
    with _open(path, marks) as ledger:
        _released(ledger, 1)


def test_a_crash_between_a_raise_and_its_mark_is_no_false_alarm(tmp_path: Path) -> None:
    path, marks = tmp_path / "x.sqlite", tmp_path / "marks"
    with _open(path, marks) as ledger:
        before = (marks / "shop.json").read_bytes()
        ledger.raise_budget(9.0, 1e-5, "asked for")
        assert (marks / "shop.json").read_bytes() != before
    (marks / "shop.json").write_bytes(before)
    with _open(path, marks, epsilon=9.0) as ledger:
        _released(ledger, 1)


PROBLEMS: dict[str, tuple[tuple[str, ...], str]] = {
    "noise of the releases": (
        ("UPDATE entries SET noise_multiplier = 500 WHERE sequence = 2",),
        "release 2 has another sample rate, noise or steps than run 1",
    ),
    "steps of the releases": (
        ("UPDATE entries SET steps = 1 WHERE sequence = 2",),
        "release 2 has another sample rate, noise or steps than run 1",
    ),
    "noise of the run": (
        ("UPDATE segments SET noise_multiplier = 500 WHERE number = 1",),
        "release 1 has another sample rate, noise or steps than run 1",
    ),
    "a run's cap": (
        ("UPDATE segments SET epsilon = 0.01 WHERE number = 1",),
        "run 1, train, has spent epsilon=",
    ),
    "a kind": (("UPDATE entries SET kind = 'other' WHERE sequence = 2",), "release 2 is of a kind that no run has"),
    "no such run": (("UPDATE entries SET segment = 7 WHERE sequence = 2",), "release 2 is of run 7"),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_what_contradicts_itself_is_found_without_any_hash(used: Path, name: str) -> None:
    statements, problem = PROBLEMS[name]
    edit(used, *statements)
    found = replace(summary(used), chain_holds=True)
    assert any(one.startswith(problem) for one in verify(found).problems), verify(found).problems


def test_a_written_off_release_is_no_contradiction(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    with _open(path) as ledger:
        _released(ledger, 1)
        with pytest.raises(LedgerBehindError):
            ledger.check_mark(LedgerMark(3, "f" * 64))
        assert len(ledger.write_off()) == 2
    kept = Marks(last=LedgerMark(3, "f" * 64))
    assert verify(summary(path), [kept]).problems == ()


def _kills() -> list[tuple[str, Callable[[Ledger], None]]]:
    return [
        ("raise", lambda ledger: ledger.raise_budget(9.0, 1e-5, "asked for") and None),
        ("segment", lambda ledger: ledger.open_segment(replace(PLAN, card_hash="c" * 64)) and None),
        ("release", lambda ledger: ledger.mark_released(ledger.mark(), PAYLOAD)),
        ("reserve", lambda ledger: ledger.reserve(ledger.segments()[0], Kind.TRAIN, 2, QUESTION) and None),
    ]


@pytest.mark.parametrize(("name", "act"), _kills(), ids=[name for name, _ in _kills()])
@pytest.mark.parametrize("committed", [False, True])
def test_an_act_that_is_cut_off_leaves_a_ledger_that_holds(
    tmp_path: Path, name: str, act: Callable[[Ledger], None], committed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut before its commit, or between it and the marks."""
    path, marks = tmp_path / "x.sqlite", tmp_path / "marks"

    class CutError(Exception):
        pass

    def cut(*arguments: object) -> None:
        raise CutError

    with _open(path, marks) as ledger:
        ledger.reserve(ledger.open_segment(PLAN), Kind.TRAIN, 1, QUESTION)
        with monkeypatch.context() as patch:
            if committed:
                patch.setattr(HighWater, "write", cut)
            else:
                patch.setattr(ledger_schema, "insert", cut)
            with suppress(CutError):
                act(ledger)
    found = summary(path)
    assert found.chain_holds
    with _open(path, marks, epsilon=found.cap.epsilon) as ledger:
        act(ledger) if (name, committed) != ("raise", True) else None
    assert summary(path).chain_holds
