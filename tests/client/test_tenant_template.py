"""The tenant file that is written for a person: whatever the card says, only the tenant's own keys are live in it."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedprofile.client.directory import TenantDirectory
from fedprofile.client.tenant_template import tenant_template
from fedprofile.common.card import FederationCard
from fedprofile.common.errors import ConfigError
from fedprofile.common.tenant import TenantFile

CardData = Callable[..., dict[str, Any]]

LIVE = 'b\ngroup = "religion"\nrename = { visits = "hiv_status" }\n#'


def _card(card_data: CardData, text: str) -> FederationCard:
    """A card that has a text in every place that a template shows and a card leaves free."""
    literal = text.replace("{", "{{").replace("}", "}}")
    return FederationCard.model_validate(
        card_data(
            task={"labels": ["no", f"yes{text}"], "group": {"attribute": f"region{text}", "values": ["a", f"b{text}"]}},
            history={"record": f"a visitor {literal}", "event": f"seen {literal}"},
            features={
                "numeric": [{"name": f"visits{text}", "low": 0, "high": 10}],
                "categorical": [{"name": f"device{text}", "values": ["phone", f"desk{text}"]}],
            },
            base={"id": f"example/{text}"},
        )
    )


def test_a_line_break_in_the_card_makes_no_key(card_data: CardData) -> None:
    plain, evil = (tenant_template(_card(card_data, text)) for text in ("", LIVE))
    assert tomllib.loads(evil) == tomllib.loads(plain)
    assert len(evil.splitlines()) == len(plain.splitlines())
    parsed = tomllib.loads(evil)
    assert parsed["columns"] == {"user": "user", "label": "label", "time": "time"}
    parsed["population"]["name"] = "shop"
    assert TenantFile.model_validate(parsed).columns.group is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_no_text_of_the_card_makes_a_key(card_data: CardData, text: str) -> None:
    plain, shown = (tenant_template(_card(card_data, part)) for part in ("", text))
    assert tomllib.loads(shown) == tomllib.loads(plain)
    assert len(shown.splitlines()) == len(plain.splitlines())
    assert all(one.isprintable() for one in shown.replace("\n", ""))


def test_readable_text_stays_readable(card_data: CardData) -> None:
    shown = tenant_template(_card(card_data, " é 网店"))
    assert "one of: no, yes é 网店" in shown and "values: a, b é 网店" in shown and "phone, desk é 网店" in shown


def test_the_population_has_no_name_until_a_person_types_one(card_data: CardData, tmp_path: Path) -> None:
    """A name out of the invite would be the operator's choice, and a second invite a second budget."""
    place = TenantDirectory(tmp_path)
    text = tenant_template(_card(card_data, ""))
    place.tenant_file.write_text(text)
    with pytest.raises(ConfigError, match=r"population\.name is empty; type a name for the users in this data"):
        place.read_tenant_file()
    place.tenant_file.write_text(text.replace('name = ""', 'name = "shop"'))
    assert place.read_tenant_file().population.name == "shop"
    place.tenant_file.write_text(text.replace('name = ""', 'name = "a b"'))
    with pytest.raises(ConfigError, match=r"'population\.name'"):
        place.read_tenant_file()


def test_the_template_proposes_no_ledger_inside_the_directory(card_data: CardData, tmp_path: Path) -> None:
    text = tenant_template(_card(card_data, "")).replace("# ledger =", "ledger =").replace('name = ""', 'name = "shop"')
    ledger = TenantFile.model_validate(tomllib.loads(text)).population.ledger
    assert ledger is not None
    TenantDirectory(tmp_path / "tenant").ledger_path(ledger)
