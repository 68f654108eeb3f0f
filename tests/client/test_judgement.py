"""What is left to a person, what is answered, and what the review list says."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedprofile.client.judgement import REVIEW, Judgement, review_list
from fedprofile.common.card import FederationCard
from fedprofile.common.config import validate
from fedprofile.common.errors import ConfigError
from fedprofile.common.tenant import JudgementSpec

SCORES = np.array([[0.9, 0.1], [0.6, 0.4], [0.5, 0.5], [0.35, 0.65], [0.3, 0.7], [0.05, 0.95]])


@pytest.fixture
def cards(card_data: Any) -> dict[str, FederationCard]:
    """One of each kind."""
    topics = {"kind": "multiclass", "labels": ["billing", "delivery", "other"]}
    return {
        "binary": validate(card_data(), FederationCard, "card"),
        "multiclass": validate(card_data(task=topics), FederationCard, "card"),
    }


def test_a_band_holds_back_both_of_its_ends_and_nothing_else(cards: dict[str, FederationCard], tmp_path: Path) -> None:
    judgement = Judgement.of(JudgementSpec(band=(0.4, 0.65)), cards["binary"], tmp_path)
    assert judgement.decisions(SCORES, [0] * 6) == ("no", REVIEW, REVIEW, REVIEW, "yes", "yes")
    assert Judgement.of(JudgementSpec(), cards["binary"], tmp_path).decisions(SCORES, [0] * 6).count(REVIEW) == 0


def test_confidence_is_of_the_most_likely_label(cards: dict[str, FederationCard], tmp_path: Path) -> None:
    (tmp_path / "replies.csv").write_text('label,reply\nbilling,"Your bill, here."\ndelivery,\n', encoding="utf-8")
    spec = JudgementSpec(confidence=0.5, replies=Path("replies.csv"))
    judgement = Judgement.of(spec, cards["multiclass"], tmp_path)
    found = judgement.decisions(np.array([[0.5, 0.3, 0.2], [0.4, 0.3, 0.3], [0.1, 0.8, 0.1], [0.0, 0.1, 0.9]]), [0] * 4)
    assert found == ("billing", REVIEW, "delivery", "other")
    assert [judgement.reply(decision) for decision in found] == ["Your bill, here.", "", "", ""]


@pytest.mark.parametrize("json_lines", [False, True])
def test_the_review_list_begins_with_the_least_sure_and_shows_what_the_model_saw(json_lines: bool) -> None:
    decisions = ("no", REVIEW, REVIEW)
    texts = ("a", 'viewed "boots"; bought', "第二，行")
    reasons = ("", "a (+0.100)", "b (-0.200); c (+0.100)")
    text = review_list(decisions, ["u1", "u2", "u3"], SCORES[:3], ["no", "yes"], texts, reasons, json_lines=json_lines)
    rows: list[dict[str, Any]]
    if json_lines:
        rows = [json.loads(line) for line in text.splitlines()]
    else:
        rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["user"] for row in rows] == ["u3", "u2"]
    assert [row["history"] for row in rows] == [texts[2], texts[1]]
    assert [float(row["p(yes)"]) for row in rows] == [0.5, 0.4]
    assert [row["because"] for row in rows] == [reasons[2], reasons[1]]


def test_a_history_is_no_formula_of_a_spreadsheet() -> None:
    texts = ("=HYPERLINK(1)", "-1 visit")
    given = ([REVIEW] * 2, ["@ann", "bob"], SCORES[:2], ["no", "yes"], texts, ["+ a (+0.100)", "b (+0.100)"])
    rows = list(csv.DictReader(io.StringIO(review_list(*given, json_lines=False))))
    assert [row["history"] for row in rows] == ["'-1 visit", "'=HYPERLINK(1)"]
    assert [row["user"] for row in rows] == ["bob", "'@ann"] and rows[1]["because"] == "'+ a (+0.100)"
    assert [json.loads(line)["history"] for line in review_list(*given, json_lines=True).splitlines()] == [*texts[::-1]]


def test_thresholds_are_those_of_each_records_group(cards: dict[str, FederationCard], tmp_path: Path) -> None:
    """The card's groups are north, south and other, which has no threshold of its own."""
    spec = JudgementSpec(thresholds={"north": 0.4, "south": 0.65}, band=(0.9, 0.99))
    judgement = Judgement.of(spec, cards["binary"], tmp_path)
    assert judgement.decisions(SCORES, [0, 0, 0, 0, 0, 0]) == ("no", "yes", "yes", "yes", "yes", REVIEW)
    assert judgement.decisions(SCORES, [1, 1, 1, 1, 1, 1]) == ("no", "no", "no", "yes", "yes", REVIEW)
    assert judgement.decisions(SCORES, [2, 2, 2, 2, 2, 2]) == ("no", "no", "yes", "yes", "yes", REVIEW)
    assert judgement.decisions(SCORES, [2, 0, 1, 0, 1, 2])[1:3] == ("yes", "no")


@pytest.mark.parametrize(
    ("kind", "spec", "replies", "told"),
    [
        ("multiclass", {"thresholds": {"north": 0.4}}, None, "are for binary tasks with a group attribute"),
        (
            "binary",
            {"thresholds": {"west": 0.4}},
            None,
            "'west' is not a value of the card's group 'region': north, south",
        ),
        ("multiclass", {"band": (0.4, 0.6)}, None, "is for binary tasks, and this card's is multiclass"),
        ("binary", {"replies": "r.csv"}, None, "cannot be read"),
        ("binary", {"replies": "r.csv"}, "label\nyes\n", "must have the columns label and reply"),
        ("binary", {"replies": "r.csv"}, "label,reply\nmaybe,hello\n", "'maybe' .* is not a label of the card"),
        ("binary", {"replies": "r.csv"}, "label,reply\nyes,a\nyes,b\n", "answers 'yes' twice"),
        ("binary", {"replies": "r.csv"}, "", "is not CSV"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    cards: dict[str, FederationCard], tmp_path: Path, kind: str, spec: dict[str, Any], replies: str | None, told: str
) -> None:
    if replies is not None:
        (tmp_path / "r.csv").write_text(replies, encoding="utf-8")
    with pytest.raises(ConfigError, match=told):
        Judgement.of(JudgementSpec.model_validate(spec), cards[kind], tmp_path)


def test_a_threshold_is_a_probability() -> None:
    with pytest.raises(ConfigError, match="above 0 and below 1"):
        validate({"thresholds": {"north": 1.0}}, JudgementSpec, "judgement")


@pytest.mark.parametrize("band", [(0.6, 0.4), (-0.1, 0.5), (0.5, 1.2), (0.5, 0.5)])
def test_a_band_is_two_probabilities(band: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="two probabilities"):
        validate({"band": band}, JudgementSpec, "judgement")
