"""Accepting an invite: what an operator must not be able to put on a tenant's screen or into its files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedprofile.client.directory import TenantDirectory
from fedprofile.client.enrolment import accept_invite
from fedprofile.common.card import FederationCard
from fedprofile.common.enrolment import Invite, file_text
from fedprofile.common.errors import ConfigError
from fedprofile.server.certificates import new_authority

CardData = Callable[..., dict[str, Any]]

CA = new_authority("test").certificate_pem().decode()


def _accept(folder: Path, card: FederationCard, address: str = "localhost:1", text: str = "") -> None:
    text = text or card.canonical().decode()
    invite = Invite(tenant="shop", address=address, ca=CA, card=text, card_hash=card.hash)
    path = folder / "shop.invite"
    path.write_text(file_text(invite), encoding="utf-8")
    accept_invite(TenantDirectory(folder / "shop"), path)


@pytest.mark.parametrize("sign", ["\n", "\r", "\t", "\0", "\x1b[2J", "\x7f", "\x9b", "\u2028", "\u202e", "\u2067"])
@pytest.mark.parametrize(
    ("place", "section"),
    [
        ("card.task.labels", lambda text: {"task": {"labels": ["no", text]}}),
        ("card.task.group.values", lambda text: {"task": {"group": {"attribute": "region", "values": [text]}}}),
        ("card.task.group.attribute", lambda text: {"task": {"group": {"attribute": text, "values": ["a"]}}}),
        ("card.history.event", lambda text: {"history": {"event": text}}),
        ("card.history.separator", lambda text: {"history": {"separator": text}}),
        ("card.features.categorical.values", lambda text: _categories(text)),
        ("card.base.id", lambda text: {"base": {"id": text}}),
        ("card.adapter.targets", lambda text: {"adapter": {"targets": [text]}}),
    ],
)
def test_a_control_character_anywhere_in_the_card_is_refused_by_place_and_code(
    card_data: CardData, tmp_path: Path, place: str, section: Callable[[str], dict[str, Any]], sign: str
) -> None:
    card = FederationCard.model_validate(card_data(**section(f"a{sign}b")))
    with pytest.raises(ConfigError, match=rf"{place} holds the control character U\+{ord(sign[0]):04X}") as refused:
        _accept(tmp_path, card)
    assert sign not in str(refused.value)
    assert not (tmp_path / "shop").exists()


def _categories(text: str) -> dict[str, Any]:
    return {"features": {"numeric": [], "categorical": [{"name": "device", "values": [text]}]}}


def test_an_address_with_a_control_character_is_refused(card_data: CardData, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"address holds the control character U\+001B"):
        _accept(tmp_path, FederationCard.model_validate(card_data()), address="\x1b]0;x:1")


def test_a_card_that_is_not_unicode_is_one_sentence(card_data: CardData, tmp_path: Path) -> None:
    card = FederationCard.model_validate(card_data())
    with pytest.raises(ConfigError, match="is not Unicode"):
        _accept(tmp_path, card, text=card.canonical().decode().replace('"no"', '"\\ud800"'))


def test_other_languages_are_text(card_data: CardData, tmp_path: Path) -> None:
    # Persian needs the zero-width non-joiner.
    labels = ["خیر", "می\u200cخواهم"]
    _accept(tmp_path, FederationCard.model_validate(card_data(task={"labels": labels})))
    assert TenantDirectory(tmp_path / "shop").read_invite().read_card().task.outputs == tuple(labels)
