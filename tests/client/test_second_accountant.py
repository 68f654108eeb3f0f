"""The ledger by two accountants: they agree on what is right, and planted mistakes are found."""

import sqlite3
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from fedprofile.client.ledger import Ledger
from fedprofile.client.ledger_summary import LedgerSummary, summary
from fedprofile.client.second_accountant import second_epsilon, verify
from fedprofile.client.segments import SegmentPlan
from fedprofile.common.accounting import ACCOUNTED_SHARE, MechanismEvent, solve_noise_multiplier
from fedprofile.common.errors import ConfigError
from fedprofile.common.messages import Kind

SHARE, DELTA = 3.0, 2e-6


def _plan(noise_share: float = 1.0) -> SegmentPlan:
    return SegmentPlan(
        card_hash="a" * 64,
        epsilon=SHARE,
        delta=DELTA,
        sample_rate=0.1,
        noise_multiplier=noise_share * solve_noise_multiplier(SHARE, DELTA, 0.1, 40),
        clip_norm=1.0,
        records_per_user=4,
        local_steps=10,
        cap_steps=40,
        evaluation_noise_multiplier=noise_share * solve_noise_multiplier(SHARE, DELTA, 1.0, 3),
        cap_tables=3,
    )


def _ledger(path: Path, plan: SegmentPlan) -> LedgerSummary:
    with Ledger.open(
        path, population="shop", user_column="user", epsilon=8.0, delta=1e-5, evaluation_users=0.2
    ) as ledger:
        segment = ledger.open_segment(plan)
        for number in (1, 2):
            ledger.reserve(segment, Kind.TRAIN, number, "b" * 64)
        ledger.reserve(segment, Kind.EVALUATE, 0, "b" * 64)
        ledger.open_segment(replace(plan, card_hash="c" * 64))
    return summary(path)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> LedgerSummary:
    return _ledger(tmp_path_factory.mktemp("sound") / "x.sqlite", _plan())


def test_both_accountants_agree_on_a_sound_ledger(sound: LedgerSummary) -> None:
    found = verify(sound)
    assert found.problems == () and found.as_dict()["holds"] is True
    assert [(one.segment, one.kind, one.what) for one in found.comparisons] == [
        (segment, kind, what) for segment in (1, 2) for kind in ("train", "evaluate") for what in ("cap", "spent")
    ]
    for one in found.comparisons:
        assert one.second == pytest.approx(one.epsilon, rel=0.01, abs=0.012)
    spent = [one.second for one in found.comparisons if one.what == "spent"]
    assert spent[0] > 0 and spent[1] > 0 and spent[2:] == [0, 0]
    assert "epsilon=3 (prv)" in found.as_text() and "The ledger holds" in found.as_text()


def test_the_second_accountant_counts_mixed_events() -> None:
    one = MechanismEvent(0.1, 1.5, 10)
    assert second_epsilon([one, one], 1e-6) == pytest.approx(second_epsilon([replace(one, steps=20)], 1e-6))
    assert second_epsilon([], 1e-6) == 0


def test_too_little_noise_is_found(tmp_path: Path) -> None:
    found = verify(_ledger(tmp_path / "x.sqlite", _plan(noise_share=0.98)))
    assert [problem.split(":")[0] for problem in found.problems] == [
        f"cap of run {number}, {kind}" for number in (1, 2) for kind in ("train", "evaluate")
    ]
    assert "PROBLEM" in found.as_text() and found.as_dict()["holds"] is False


def test_a_first_accountant_that_tells_too_little_is_found(sound: LedgerSummary) -> None:
    first = sound.segments[0]
    low = replace(first, train=replace(first.train, epsilon=0.98 * first.train.epsilon))
    [problem] = verify(replace(sound, segments=(low,))).problems
    assert problem.startswith("spent of run 1, train: epsilon=")


def test_caps_and_chain_are_checked(sound: LedgerSummary, tmp_path: Path) -> None:
    assert verify(replace(sound, chain_holds=False)).problems == ("the entries do not match their hashes",)
    low = replace(sound, budgets=(replace(sound.budgets[0], epsilon=5.0, delta=3e-6),))
    assert verify(low).problems == (
        "the runs' caps come to epsilon=6, above the life's 5",
        "the runs' caps come to delta=4e-06, above the life's 3e-06",
    )
    path = tmp_path / "x.sqlite"
    _ledger(path, _plan())
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE entries SET steps = 50 WHERE sequence = 1")
        connection.commit()
    assert {"the entries do not match their hashes", "run 1 has more steps or tables than its caps"} <= set(
        verify(summary(path)).problems
    )


def test_without_the_package_it_says_what_to_install(sound: LedgerSummary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ConfigError, match="pip install 'dp-accounting"):
        verify(sound)


def test_what_is_accounted_is_less_than_what_is_drawn(sound: LedgerSummary) -> None:
    [first, *_] = sound.releases
    assert first.noise_multiplier == pytest.approx(ACCOUNTED_SHARE * sound.segments[0].segment.plan.noise_multiplier)
