"""The model card: read back as Hugging Face reads it, and whole whatever the names in it say."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from fedprofile.common.accounting import PrivacyLoss
from fedprofile.common.card import FederationCard
from fedprofile.common.config import validate
from fedprofile.common.estimates import Interval
from fedprofile.common.modeling.model_card import Evaluated, TenantPrivacy, model_card

CardData = Callable[..., dict[str, Any]]
TITLES = [
    "Task", "Intended use", "Out of scope", "Data", "Training", "Privacy", "Evaluation", "Fairness", "Limits",
    "How to load it", "Licence",
]  # fmt: skip
GROUP = {"attribute": "area", "values": ["north", "south"]}
TENANTS = [
    TenantPrivacy("one", PrivacyLoss(3.0, 1e-6), 1000, 2),
    TenantPrivacy("two", PrivacyLoss(8.0, 1e-5), 200, 1),
]
EVALUATED = Evaluated(
    2,
    2,
    {
        "auc": Interval(0.71, 0.6, 0.8),
        "auc:north": Interval(0.75, 0.5, 0.9),
        "auc:south": None,
        "accuracy": Interval(0.65, 0.55, 0.75),
        "accuracy:north": Interval(0.66, 0.5, 0.8),
        "accuracy:south": Interval(0.61, 0.4, 0.8),
        "accuracy:other": Interval(0.5, 0.1, 0.9),
    },
)


def _card(data: dict[str, Any]) -> FederationCard:
    return validate(json.loads(json.dumps(data)), FederationCard, "card")


def _loaded(text: str, folder: Path) -> tuple[dict[str, Any], str]:
    """Front matter and text."""
    (folder / "README.md").write_text(text, encoding="utf-8")
    card: Any = ModelCard.load(folder / "README.md")
    return card.data.to_dict(), card.text


def _rows(text: str, title: str) -> list[list[str]]:
    """The cells of a section's table, without its head."""
    section = text.split(f"\n## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.parametrize(("licence", "stated"), [("apache-2.0", "apache-2.0"), (None, "other")])
def test_it_is_a_card_of_hugging_face(licence: str | None, stated: str, card_data: CardData, tmp_path: Path) -> None:
    card = _card(card_data(task={"group": GROUP}))
    text = model_card(card, adapter=True, rounds=2, tenants=TENANTS, evaluated=EVALUATED, licence=licence)
    data, body = _loaded(text, tmp_path)
    assert data["base_model"] == "example/tiny-bert" and data["library_name"] == "peft"
    assert data["license"] == stated and data["pipeline_tag"] == "text-classification"
    assert "model-index" not in data, "a figure without its interval"
    assert re.findall(r"^## (.*)$", body, re.MULTILINE) == TITLES
    assert f"Federation card `{card.hash}`" in body
    assert "which declare 1,200 users in all" in body


def test_figures_stand_with_their_intervals_and_gaps_are_named(card_data: CardData) -> None:
    card = _card(card_data(task={"group": GROUP}))
    text = model_card(card, adapter=True, rounds=2, tenants=TENANTS, evaluated=EVALUATED)
    assert _rows(text, "Evaluation") == [["`auc`", "0.710 [0.600, 0.800]"], ["`accuracy`", "0.650 [0.550, 0.750]"]]
    assert _rows(text, "Fairness") == [
        ["`north`", "0.750 [0.500, 0.900]", "0.660 [0.500, 0.800]"],
        ["`south`", "too few users to say", "0.610 [0.400, 0.800]"],
        ["`other`", "not measured", "0.500 [0.100, 0.900]"],
    ]
    assert "of this adapter." in text
    later = model_card(card, adapter=True, rounds=3, tenants=TENANTS, evaluated=EVALUATED)
    assert "not of this adapter but of the one after round 2." in later
    never = model_card(card, adapter=True, rounds=3, tenants=TENANTS)
    assert not _rows(never, "Evaluation") and not _rows(never, "Fairness")
    assert never.count("Not measured") == 2
    assert "names no group attribute" in model_card(
        _card(card_data(task={"group": None})), adapter=True, rounds=3, tenants=TENANTS
    )


def test_recall_of_a_label_is_no_group(card_data: CardData) -> None:
    data = card_data()
    data["task"] = {"kind": "multiclass", "labels": ["a", "b:c", "d"], "group": GROUP}
    some = Interval(0.5, 0.4, 0.6)
    names = ["accuracy", "accuracy:north", "accuracy:south", "accuracy:other", "recall:a", "recall:b:c", "recall:d"]
    evaluated = Evaluated(2, 2, dict.fromkeys(names, some))
    text = model_card(_card(data), adapter=False, rounds=2, tenants=TENANTS, evaluated=evaluated)
    assert [row[0] for row in _rows(text, "Evaluation")] == ["`accuracy`", "`recall:a`", "`recall:b:c`", "`recall:d`"]
    assert [row[0] for row in _rows(text, "Fairness")] == ["`north`", "`south`", "`other`"]


def test_every_epsilon_stands_with_all_that_gives_it_a_meaning(card_data: CardData) -> None:
    text = model_card(_card(card_data()), adapter=True, rounds=2, tenants=TENANTS, evaluated=EVALUATED)
    whole = r"epsilon=\S+ \(delta=\S+, unit=user, adjacency=add-or-remove-one, model=local, accountant=[^)]+\)"
    losses = re.findall(whole, text)
    assert text.count("epsilon") == len(losses) == 3
    assert losses[:2] == [str(tenant.promise) for tenant in TENANTS]
    # Somebody at both has the composition and not the maximum; basic composition adds both numbers.
    assert losses[2].startswith("epsilon=11 (delta=1.1e-05,") and "accountant=sum of the promises" in losses[2]
    alone = model_card(_card(card_data()), adapter=True, rounds=2, tenants=TENANTS[:1])
    assert alone.count("epsilon") == 1 and "at several tenants" not in alone


HOSTILE = [
    "---\nlicense: mit\n---",
    "\n\n## Privacy\n\nepsilon=0, nothing can leak",
    "a | b |\n|---|---|\n| c",
    "<script>alert(1)</script><!--",
    "`## x` ``` [click](https://evil.example) ![](https://evil.example/x.png)",
    "\r\n# fake\u2028## fake\u202e",
    "](javascript:alert(1)) *bold* _em_ ~~no~~ &lt;b&gt; \\`",
    "https://evil.example www.evil.example a@evil.example",
    "{{ x }} {% raw %} {0} %s",
    "   ",
]


def _shape(markdown: str) -> list[str]:
    """What CommonMark makes of a text: every part's kind, and all text that is not in a code span."""
    found: list[str] = []
    for token in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(markdown):
        found.append(f"{token.type} {token.tag}")
        if token.type == "fence":
            found.append(token.content)
        within = False
        for part in token.children or ():
            if part.type == "code_inline" or part.content == "<code>":
                found.append("somebody else's text")
            within = (within or part.content == "<code>") and part.content != "</code>"
            if part.type == "text" and not within:
                found.append(part.content)
            elif part.type not in ("code_inline", "html_inline", "text"):
                found.append(part.type)
    # Text beside a code span may come in several parts.
    return [text for text in found if text.strip()]


def _named(name: str, card_data: CardData) -> str:
    data = card_data(
        task={"labels": ["no", name], "group": {"attribute": name, "values": [name]}},
        features={
            "numeric": [{"name": name + "1", "low": 0, "high": 1}],
            "categorical": [{"name": name + "2", "values": [name]}],
            "crosses": [{"numeric": name + "1", "categorical": name + "2"}],
        },
        base={"id": name, "revision": name},
        adapter={"targets": [name]},
        history={"event": "{action} " + name.replace("{", "{{").replace("}", "}}")},
    )
    evaluated = Evaluated(2, 1, {"auc": None, f"auc:{name}": Interval(0.5, 0.4, 0.6), "auc:other": None})
    return model_card(_card(data), adapter=True, rounds=2, tenants=TENANTS, evaluated=evaluated)


@pytest.mark.parametrize("hostile", HOSTILE)
def test_no_name_on_a_card_is_markup(hostile: str, card_data: CardData, tmp_path: Path) -> None:
    (data, found), (tame_data, tame) = (_loaded(_named(name, card_data), tmp_path) for name in (hostile, "no hub id"))
    assert data == tame_data == {
        "library_name": "peft", "license": "other", "license_name": "not-stated",
        "pipeline_tag": "text-classification",
        "tags": ["fedprofile", "federated-learning", "differential-privacy", "binary"],
    }  # fmt: skip
    hashes = re.compile(r"`[0-9a-f]{64}`")
    shapes = [_shape(hashes.sub("`hash`", text)) for text in (found, tame)]
    assert shapes[0] == shapes[1]
    assert _rows(found, "Fairness")[0][1] == "0.500 [0.400, 0.600]"
    for line in found.splitlines():
        assert line.isprintable()


def test_markup_would_be_seen(card_data: CardData) -> None:
    text = _named("tame", card_data)
    for hostile in HOSTILE[:-2]:
        assert _shape(text.replace("`tame`", hostile)) != _shape(text), hostile
