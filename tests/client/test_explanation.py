"""Explanations against their definitions: exact Shapley values, single removals, and what they must never do."""

import json
from collections.abc import Callable
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from itertools import combinations
from math import factorial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.client.test_commands import Home, card, home, joined_folder, visits  # noqa: F401

from fedprofile.client.agreement import read_agreed
from fedprofile.client.explanation import SAYS, Explanation, because, explain
from fedprofile.client.explanation_files import explanation_page
from fedprofile.client.profiler import Profiler
from fedprofile.client.received import AdapterFolder
from fedprofile.client.site import load_model
from fedprofile.common.interactions import Example
from fedprofile.common.modeling.profile_model import ProfileModel

MakeModel = Callable[..., ProfileModel]
Stir = Callable[[ProfileModel], None]

EVENTS = tuple({"action": "viewed", "item": f"w{number}"} for number in range(4))
PERSON = Example("ann", {"month": "w9", "visits": 7.0, "device": "phone"}, EVENTS)


@pytest.fixture
def profiler(make_model: MakeModel, stir: Stir) -> Profiler:
    return _profiler(make_model(), stir)


def _profiler(model: ProfileModel, stir: Stir) -> Profiler:
    stir(model)
    return Profiler(model.card, model, model.tokenizer, None, 3, "a" * 64)


def _value(profiler: Profiler, present: tuple[int, ...]) -> float:
    """The positive label's probability with some parts only; part 4 is the record."""
    events = tuple(event for place, event in enumerate(EVENTS) if place in present)
    row = PERSON.row if 4 in present else dict.fromkeys(PERSON.row)
    return float(profiler.scores([replace(PERSON, events=events, row=row)])[0, 1])


def test_ablation_is_the_difference_that_one_part_makes(profiler: Profiler) -> None:
    found = explain(profiler, PERSON)
    everything = tuple(range(5))
    assert found.score == pytest.approx(_value(profiler, everything), abs=1e-6)
    assert found.base == pytest.approx(_value(profiler, ()), abs=1e-6)
    assert [part.text for part in found.parts] == [
        *(f"viewed w{number}" for number in range(4)),
        "device phone, month w9, visits 7.0",
    ]
    for place, part in enumerate(found.parts):
        alone = _value(profiler, tuple(other for other in everything if other != place))
        assert part.effect == pytest.approx(found.score - alone, abs=1e-5)
    assert max(abs(part.effect) for part in found.parts) > 1e-3


def test_shapley_values_are_near_the_exact_ones_and_add_up(profiler: Profiler) -> None:
    worth = {chosen: _value(profiler, chosen) for size in range(6) for chosen in combinations(range(5), size)}
    exact = [
        sum(
            factorial(len(others)) * factorial(4 - len(others)) / factorial(5)
            * (worth[tuple(sorted((*others, part)))] - worth[others])
            for size in range(5)
            for others in combinations([other for other in range(5) if other != part], size)
        )
        for part in range(5)
    ]  # fmt: skip
    found = explain(profiler, PERSON, method="shapley", samples=200)
    effects = [part.effect for part in found.parts]
    assert sum(effects) == pytest.approx(found.score - found.base, abs=1e-5)
    spread = max(worth.values()) - min(worth.values())
    assert np.abs(np.subtract(effects, exact)).max() < 0.1 * spread
    assert np.corrcoef(effects, exact)[0, 1] > 0.95


def test_the_same_question_has_the_same_answer_and_moves_nobody_elses_random_numbers(profiler: Profiler) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second = (explain(profiler, PERSON, method="shapley", samples=5) for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    assert first == second


def test_events_beyond_the_cards_number_are_no_part(make_model: MakeModel, stir: Stir) -> None:
    profiler = _profiler(make_model(history={"max_events": 2}), stir)
    found = explain(profiler, PERSON)
    assert [part.text for part in found.parts[:-1]] == ["viewed w2", "viewed w3"]


def test_an_event_that_is_cut_off_has_no_effect(make_model: MakeModel, stir: Stir) -> None:
    """Of twenty tokens the two newest events and the record are left."""
    profiler = _profiler(make_model(history={"max_tokens": 12}), stir)
    found = explain(profiler, PERSON)
    assert found.parts[0].effect == 0.0 and found.parts[3].effect != 0.0
    assert "viewed w0" not in because(found)


@pytest.mark.parametrize(
    "task",
    [
        {"kind": "multiclass", "labels": ["a", "b", "c"]},
        {"kind": "multilabel", "labels": ["a", "b", "c"]},
        {"kind": "regression", "target": "price", "low": -50, "high": 350},
        {"kind": "ranking", "candidates": ["w20", "w21", "w22"], "negatives": 1, "cutoff": 1},
    ],
    ids=lambda task: task["kind"],
)
def test_every_kind_of_task(task: dict[str, Any], make_kind: MakeModel, stir: Stir) -> None:
    sections: dict[str, Any] = {}
    if task["kind"] == "ranking":
        sections = {"history": {"record": "{candidate}"}, "features": {"numeric": [], "categorical": []}}
    profiler = _profiler(make_kind(task=task, **sections), stir)
    best = explain(profiler, PERSON, method="shapley", samples=3)
    scores = profiler.scores([PERSON])[0]
    unit = 400 if task["kind"] == "regression" else 1
    place = int(scores.argmax())
    assert best.output == profiler.card.task.outputs[place]
    assert best.score == pytest.approx((-50 if unit == 400 else 0) + unit * scores[place], rel=1e-5)
    assert sum(part.effect for part in best.parts) == pytest.approx(best.score - best.base, abs=1e-4 * unit)
    if len(scores) > 1:
        other = (place + 1) % len(scores)
        chosen = explain(profiler, PERSON, output=other)
        assert chosen.output == profiler.card.task.outputs[other] and chosen.score == pytest.approx(scores[other])


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags.add(tag)


def test_texts_of_the_data_cannot_change_the_page_or_a_terminal(profiler: Profiler) -> None:
    nasty = "<script>alert(1)</script>\x1b[31m"
    events = ({"action": nasty, "item": "w1"},)
    found = explain(profiler, replace(PERSON, user="<img src=x>", events=events))
    page, tags = explanation_page([found]), _Tags()
    tags.feed(page)
    assert not tags.tags & {"script", "img", "link", "iframe"}
    assert "&lt;script&gt;" in page and "\x1b" not in page and "\x1b" not in found.as_text()
    assert escape(SAYS) in page and SAYS in found.as_text() and found.as_dict()["note"] == SAYS


def test_a_representation_holds_no_event(profiler: Profiler) -> None:
    assert "viewed" not in repr(explain(profiler, PERSON))


def test_the_strongest_parts_in_a_cell() -> None:
    from fedprofile.client.explanation import Part

    parts = (Part("a", 0.1), Part("b", 0.0), Part("c", -0.3), Part("own text", 0.2, is_event=False))
    found = Explanation("u", "yes", 0.5, 0.5, parts, "ablation", 1)
    assert because(found, 2) == "c (-0.300); the record itself (+0.200)"
    assert because(found) == "c (-0.300); the record itself (+0.200); a (+0.100)"


def test_the_command(home: Home) -> None:  # noqa: F811
    home.joined()
    place = home.place
    tenant, (agreed, _) = place.read_tenant_file(), read_agreed(place)
    model, _ = load_model(agreed, tenant, place.root)
    draw = np.random.default_rng(0)
    arrays = {name: array + draw.normal(0, 0.3, array.shape) for name, array in model.get_arrays().items()}
    AdapterFolder(place, agreed.hash).keep({name: array.astype(np.float32) for name, array in arrays.items()}, 2)
    folder, rows = str(home.root), str(home.root / "visits.csv")
    ended, printed, said = home.run("explain", "--dir", folder, "--input", rows, "--user", "u1", "--json")
    assert ended == 0, said
    found = json.loads(printed)
    assert ended == 0 and found and {one["user"] for one in found} == {"u1"} and found[0]["round"] == 2
    for ending in (".html", ".txt", ".jsonl"):
        out = home.root.parent / f"why{ending}"
        ended, _, said = home.run("explain", "--dir", folder, "--input", rows, "--user", "u1", "--output", str(out))
        assert ended == 0 and "u1" in out.read_text() and out.stat().st_mode & 0o077 == 0, said
    for option, value, problem in (
        ("--method", "guess", "is not one of ablation, shapley"),
        ("--label", "maybe", "is not one of the card's 2"),
        ("--user", "secret-person", "has no row"),
        ("--output", "why.pdf", "ends in .html or .txt"),
    ):
        ended, _, said = home.run("explain", "--dir", folder, "--input", rows, option, value)
        assert ended == 2 and problem in said and "secret-person" not in said
    assert Path(rows).exists()
