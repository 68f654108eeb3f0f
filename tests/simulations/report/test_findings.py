"""What the first page says follows from the table, and a direction only from an interval that excludes zero."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.simulations.report.synthetic import EPSILONS, Synthetic, facts

from fedprofile.common.accounting import PrivacyLoss
from fedprofile.simulations.report.compose import compose
from fedprofile.simulations.report.estimates import Estimate
from fedprofile.simulations.report.facts import AuditRow, ReportFacts
from fedprofile.simulations.report.findings import findings
from fedprofile.simulations.report.focus import extremes, focus_of
from fedprofile.simulations.report.results import Measured, Results
from fedprofile.simulations.report.wording import change


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return Synthetic().table()


def _sentences(table: pd.DataFrame, known: ReportFacts | None = None) -> list[str]:
    return [one for topic in findings(focus_of(Results(table)), known or facts()) for one in topic.sentences]


def _one(sentences: list[str], *words: str) -> str:
    """The only sentence with all of the words."""
    found = [sentence for sentence in sentences if all(word in sentence for word in words)]
    assert len(found) == 1, (words, sentences)
    return found[0]


def _changed(table: pd.DataFrame, numbers: tuple[float, float, float], **where: object) -> pd.DataFrame:
    """The table with value, low and high of some rows replaced."""
    chosen = np.logical_and.reduce([table[name] == value for name, value in where.items()])
    assert chosen.any()
    changed = table.copy()
    changed.loc[chosen, ["value", "low", "high"]] = numbers
    return changed


OVERALL = {"scope": "overall", "metric": "auc", "arm": "federated"}
PRICE = OVERALL | {"kind": "price"}
AT_3 = {"epsilon": 3.0, "strategy": "fedavg", "mitigation": "none"}


def test_the_first_page_of_the_synthetic_experiment(table: pd.DataFrame) -> None:
    said = _sentences(table)
    assert said[0].startswith("At epsilon 3 the federation's AUC") and "privacy costs 0.03" in said[0]
    assert "at epsilon 8 no difference in AUC was found" in said[1] and "At epsilon 1 privacy costs 0.10" in said[1]
    assert "'b' pays more than 'a'" in _one(said, "groups of gender", "true-positive rate")
    assert "no difference was found" in _one(said, "4 groups of age", "true-positive rate")
    assert "better than training alone" in _one(said, "training alone")
    assert "no difference was found" in _one(said, "in one place")
    assert "2 of 19 tenants" in _one(said, "global gap hides")
    assert "narrows the equalised-odds gap of gender" in _one(said, "'group-thresholds' narrows")
    assert "THE AUDIT FAILS" in _one(said, "'one run, updates'") and "delta=1e-05" in _one(said, "THE AUDIT FAILS")
    assert _one(said, "Bayes rule").startswith("The interval that was measured holds the truth for 1 of 2")


@settings(max_examples=60, deadline=None)
@given(middle=st.floats(-0.2, 0.2), half=st.floats(0.001, 0.1))
def test_a_price_has_a_direction_only_where_its_interval_excludes_zero(middle: float, half: float) -> None:
    low, high = middle - half, middle + half
    said = _sentences(_changed(SMALL, (middle, low, high), **PRICE, **AT_3))[0]
    assert ("no difference in AUC was found" in said) == (low <= 0 <= high)
    assert ("privacy costs" in said) == (high < 0)
    assert ("it is better with noise" in said) == (low > 0)


@settings(max_examples=60, deadline=None)
@given(middle=st.floats(-0.2, 0.2), half=st.floats(0.001, 0.1))
def test_a_group_pays_more_only_where_the_difference_excludes_zero(middle: float, half: float) -> None:
    where = {"scope": "group", "metric": "true_positive_rate", "column": "gender", "kind": "price", **AT_3}
    one = _changed(SMALL, (-0.05, -0.06, -0.04), **where, group="a")
    both = _changed(one, (-0.05 + middle, -0.05 + middle - half, -0.05 + middle + half), **where, group="b")
    said = _one(_sentences(both), "groups of gender", "true-positive rate")
    # The closed form for two independent normal estimates.
    assert ("pays more than" in said) == (abs(middle) > math.hypot(half, 0.01))
    assert ("no difference was found" in said) == (abs(middle) <= math.hypot(half, 0.01))


def test_a_group_whose_own_price_crosses_zero_does_not_fall_or_rise(table: pd.DataFrame) -> None:
    where = {"scope": "group", "metric": "true_positive_rate", "column": "gender", "kind": "price", **AT_3}
    said = _one(_sentences(_changed(table, (-0.01, -0.03, 0.01), **where, group="a")), "'b' pays more than 'a'")
    assert "its true-positive rate falls by 0.09" in said
    assert "that of 'a' shows no difference (−0.01 [−0.03, +0.01])" in said
    assert change(Estimate(0.02, 0.01, 0.03), "auc") == "rises by 0.02 [0.01, 0.03]"


def test_for_errors_more_is_worse(table: pd.DataFrame) -> None:
    errors = table.assign(metric=table["metric"].replace({"auc": "log_loss", "accuracy": "base_rate"}))
    assert "privacy costs 0.05" in _sentences(_changed(errors, (0.05, 0.04, 0.06), **PRICE | {"metric": "log_loss"}))[0]
    said = _sentences(_changed(errors, (-0.05, -0.06, -0.04), **PRICE | {"metric": "log_loss"}))[0]
    assert "it is better with noise by 0.05" in said


def test_a_federation_that_is_worse_than_training_alone_is_said_to_be(table: pd.DataFrame) -> None:
    said = _sentences(_changed(table, (0.9, 0.88, 0.92), **OVERALL | {"arm": "alone", "kind": "level"}))
    assert "is not better than training alone but worse, by 0.19" in _one(said, "training alone")


def test_a_gap_whose_interval_reaches_zero_was_not_found(table: pd.DataFrame) -> None:
    where = {"scope": "gap", "metric": "equalized_odds", "column": "age", "statistic": "difference"}
    said = _sentences(_changed(table, (0.04, 0.0, 0.09), **where, kind="level"))
    assert "no equalised-odds gap between the groups of age was found" in _one(said, "gap between the groups of age")


def test_the_largest_of_many_equal_prices_is_seldom_said_to_be_larger() -> None:
    draw = np.random.default_rng(1)
    wrong = naive = 0
    for _ in range(1500):
        prices = draw.normal(-0.05, 0.02, size=6)
        entries = [
            Measured("age", str(k), Estimate(x, x - 1.96 * 0.02, x + 1.96 * 0.02), 50) for k, x in enumerate(prices)
        ]
        found = extremes(entries, "auc")
        assert found is not None and found[3] == 6 and found[2].value == pytest.approx(np.ptp(prices))
        wrong += found[2].sign > 0
        naive += bool(np.ptp(prices) > 1.96 * 0.02 * math.sqrt(2))
    assert wrong / 1500 < 0.05 < 0.3 < naive / 1500


def test_the_mean_of_the_tenants_gaps_is_put_beside_the_global_one(table: pd.DataFrame) -> None:
    where = {"scope": "client_gap", "statistic": "mean"}
    said = _sentences(_changed(table, (0.4, 0.3, 0.5), **where))
    assert "the mean of the tenants' own gaps is 0.40 [0.30, 0.50]" in _one(said, "This global gap hides")
    few = _changed(table, (0.1, 0.0, 0.2), scope="client_gap", statistic="difference")
    assert "at none of 19 tenants was a larger one found" in _one(_sentences(few), "over all users is 0.15")


def test_suppressed_numbers_take_no_part(table: pd.DataFrame) -> None:
    where = {"scope": "group", "metric": "true_positive_rate", "column": "age", "kind": "price"}
    chosen = np.logical_and.reduce([table[name] == value for name, value in {**where, "group": "65+"}.items()])
    extreme = _changed(table, (-0.9, -0.91, -0.89), **where, group="65+")
    assert "'65+' pays more" in _one(_sentences(extreme), "groups of age", "true-positive rate")
    extreme.loc[chosen, "suppressed"] = True
    said = _one(_sentences(extreme), "groups of age", "true-positive rate")
    assert "3 groups of age" in said and "no difference" in said and "1 of its groups: too few people" in said


def _selecting(rate: float, base: float) -> pd.DataFrame:
    """The small table with selection and base rates at epsilon 3, and a gap that noise makes narrower."""
    overall = SMALL["scope"].eq("overall") & SMALL["metric"].eq("auc") & SMALL["kind"].eq("level")
    rows = SMALL[overall & SMALL["arm"].eq("federated") & SMALL["epsilon"].eq(3.0)]
    more = [
        rows.assign(metric=metric, value=value, low=value - 0.01, high=value + 0.01)
        for metric, value in (("selection_rate", rate), ("base_rate", base))
    ]
    table = pd.concat([SMALL, *more], ignore_index=True)
    where = {"scope": "gap", "metric": "equalized_odds", "statistic": "difference", "column": "gender"}
    return _changed(table, (-0.2, -0.3, -0.1), **where, kind="price", **AT_3)


@pytest.mark.parametrize(("rate", "alike"), [(0.01, True), (0.2, False), (0.98, True), (0.9, False)])
def test_a_model_that_decides_nearly_everybody_alike_is_not_called_fair(rate: float, alike: bool) -> None:
    said = _sentences(_selecting(rate, 0.4))
    found = [sentence for sentence in said if "decided alike: the selection rate is at epsilon 3 0." in sentence]
    assert len(found) == alike
    narrower = _one(said, "equalised-odds gap between the groups of gender", "noise makes it narrower")
    assert narrower.endswith(", by deciding nearly everybody alike.") == alike


def test_only_without_noise_and_only_with_noise(table: pd.DataFrame) -> None:
    assert any("no difference in AUC was found between training with and without" in one for one in _sentences(table))
    plain = _sentences(table[table["epsilon"] == math.inf])
    assert plain[0].startswith("Without noise the federation's AUC") and "no cell was run with noise" in plain[0]
    private = _sentences(table[(table["epsilon"] == 3.0) & (table["kind"] == "level")])
    assert "what privacy costs is not known" in private[0]


def test_the_epsilon_that_is_looked_at_is_chosen_by_rule(table: pd.DataFrame) -> None:
    assert focus_of(Results(table)).epsilon == sorted(EPSILONS)[1]


def test_audit_findings() -> None:
    claim = PrivacyLoss(3.0, 1e-5)
    good, weak = AuditRow("a", claim, 1000, 500, 300, 0.4), AuditRow("b", None, 1000, 500, 260, 0.1, needed=3.0)
    assert good.holds and not weak.holds and not dataclasses.replace(good, bound=3.01).holds
    said = _sentences(SMALL, dataclasses.replace(facts(), audit=(good, weak)))
    assert str(claim) in _one(said, "below the claim in all of 1")
    assert "does NOT work" in _one(said, "attack 'b'")
    assert not any("udit" in sentence for sentence in _sentences(SMALL, dataclasses.replace(facts(), audit=None)))


def test_an_audit_says_what_it_could_not_have_found() -> None:
    claim, high = PrivacyLoss(3.0, 1e-5), PrivacyLoss(8.0, 1e-5)
    judging = AuditRow("a", claim, 1000, 150, 122, 1.1, ceiling=3.9)
    blind = AuditRow("b", high, 1000, 150, 150, 3.9, ceiling=3.9)
    assert judging.could_fail and not blind.could_fail
    said = _sentences(SMALL, dataclasses.replace(facts(), audit=(judging, blind)))
    assert str(high) in _one(said, "could not have been refuted", "3.90")
    assert _one(said, "was not tried without noise", "prove nothing")
    tried = (judging, AuditRow("c", None, 1000, 150, 150, 3.9, needed=3.0))
    said = _sentences(SMALL, dataclasses.replace(facts(), audit=tried))
    assert not any("could not have been" in sentence or "was not tried" in sentence for sentence in said)


def test_an_attack_that_does_not_judge_neither_fails_nor_works_by_itself() -> None:
    claim = PrivacyLoss(1.0, 1e-5)
    works = AuditRow("updates", None, 1000, 150, 150, 3.9, needed=3.0)
    beside = AuditRow("final", None, 1000, 150, 75, 0.0, needed=3.0, judges=False)
    above = AuditRow("final with noise", claim, 1000, 150, 130, 1.3, judges=False)
    found = dataclasses.replace(facts(), audit=(works, beside, above))
    said = _sentences(SMALL, found)
    assert "'final' does NOT work: 75 of 150" in _one(said, "attack 'final'")
    assert _one(said, "Beside the attack that judges", "above the claim")
    assert not any("THE AUDIT FAILS" in one or "the audit proves nothing" in one for one in said)
    assert not compose(Results(SMALL), found).notices
    failing = dataclasses.replace(found, audit=(dataclasses.replace(above, judges=True),))
    assert any("audit fails" in notice for notice in compose(Results(SMALL), failing).notices)


def _small() -> pd.DataFrame:
    """The synthetic table at two epsilons, without tenants."""
    table = Synthetic().table()
    return table.loc[table["epsilon"].isin([3.0, math.inf]) & ~table["scope"].isin(["tenant", "client_gap"])]


SMALL = _small()
