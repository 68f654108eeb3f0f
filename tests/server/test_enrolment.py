"""The roster: only invited names, only signed files, only this card, only kept promises."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from fedprofile.common.card import FederationCard
from fedprofile.common.enrolment import Enrolment, Promise, file_text, write_public_key
from fedprofile.common.errors import ConfigError, InputError, PolicyRefusal, RefusalCode
from fedprofile.server.enrolment import (
    enroll_tenant,
    invite_tenant,
    key_bytes,
    read_enrolment,
    read_roster,
    revoke_tenant,
)

MakeCard = Callable[..., FederationCard]


@pytest.fixture
def card(make_card: MakeCard) -> FederationCard:
    return make_card()


@pytest.fixture
def path(tmp_path: Path, card: FederationCard) -> Path:
    path = tmp_path / "tenants.json"
    for name in ("acme", "globex"):
        invite_tenant(path, name, card, "localhost:1", b"CA")
    return path


def _signed(card: FederationCard, name: str, key: ec.EllipticCurvePrivateKey | None = None, **fields: Any) -> Enrolment:
    key = key or ec.generate_private_key(ec.SECP384R1())
    data: dict[str, Any] = {
        "tenant": name,
        "public_key": write_public_key(key.public_key()),
        "card_hash": card.hash,
        "declared_users": 100,
        "promise": Promise(epsilon=3.0, delta=1e-6),
    }
    return Enrolment(**{**data, **fields}).signed_by(key)


def test_an_invite_holds_the_card_and_inviting_again_gives_the_same(path: Path, card: FederationCard) -> None:
    first = invite_tenant(path, "acme", card, "host:1", b"CA")
    assert first == invite_tenant(path, "acme", card, "host:1", b"CA")
    assert first.read_card() == card
    assert [entry.name for entry in read_roster(path).tenants] == ["acme", "globex"]
    for bad in ("../up", "", "a b", "x" * 65):
        with pytest.raises(ConfigError, match="tenant"):
            invite_tenant(path, bad, card, "host:1", b"CA")


def test_enrolling_twice_changes_nothing(path: Path, card: FederationCard) -> None:
    enrolment = _signed(card, "acme")
    first = enroll_tenant(path, enrolment, card, 2.0)
    assert first.changed and first.entry.active
    before = path.read_bytes()
    again = enroll_tenant(path, enrolment, card, 2.0)
    assert not again.changed and again.entry == first.entry
    assert path.read_bytes() == before


def test_only_invited_names(path: Path, card: FederationCard) -> None:
    with pytest.raises(ConfigError, match="'stranger' was not invited"):
        enroll_tenant(path, _signed(card, "stranger"), card, 1.0)


def test_another_card_and_a_weak_promise_are_refused(path: Path, card: FederationCard, make_card: MakeCard) -> None:
    other = make_card(name="other")
    with pytest.raises(PolicyRefusal, match="send it a new invite") as refusal:
        enroll_tenant(path, _signed(other, "acme"), card, 1.0)
    assert refusal.value.code is RefusalCode.CARD and refusal.value.exit_code == 3
    with pytest.raises(PolicyRefusal, match=r"epsilon=10.5 \(delta=1e-06.*max_epsilon=10"):
        enroll_tenant(path, _signed(card, "acme", promise=Promise(epsilon=10.5, delta=1e-6)), card, 1.0)
    assert not any(entry.active for entry in read_roster(path).tenants)


def test_a_key_belongs_to_one_tenant_and_a_tenant_has_one_key(path: Path, card: FederationCard) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    enroll_tenant(path, _signed(card, "acme", key), card, 1.0)
    with pytest.raises(InputError, match="already enrolled as 'acme'"):
        enroll_tenant(path, _signed(card, "globex", key), card, 1.0)
    with pytest.raises(InputError, match="enrolled with another key"):
        enroll_tenant(path, _signed(card, "acme"), card, 1.0)
    revoke_tenant(path, "acme")
    assert enroll_tenant(path, _signed(card, "acme"), card, 1.0).entry.active


def test_revoking_is_remembered_and_can_be_taken_back(path: Path, card: FederationCard) -> None:
    enrolment = _signed(card, "acme")
    enroll_tenant(path, enrolment, card, 1.0)
    revoked = revoke_tenant(path, "acme")
    assert not revoked.active and revoke_tenant(path, "acme") == revoked
    assert enroll_tenant(path, enrolment, card, 1.0).changed
    with pytest.raises(ConfigError, match="not on the roster; on it: acme, globex"):
        revoke_tenant(path, "nobody")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("declared_users", 10**6),
        ("tenant", "globex"),
        ("card_hash", "b" * 64),
        ("signature", "AAAA"),
        ("signature", "?"),
    ],
)
def test_a_file_that_was_changed_is_refused(tmp_path: Path, card: FederationCard, field: str, value: Any) -> None:
    file = tmp_path / "acme.enroll"
    file.write_text(file_text(_signed(card, "acme")))
    assert read_enrolment(file).tenant == "acme"
    file.write_text(json.dumps({**json.loads(file.read_text()), field: value}))
    with pytest.raises(ConfigError, match="signature does not fit"):
        read_enrolment(file)


def test_files_that_are_none_are_refused(tmp_path: Path, card: FederationCard) -> None:
    file = tmp_path / "acme.enroll"
    for content in (b"", b"{", b"[]", b'{"format": 1}', b"\xff\xfe", b"[" * 100_000):
        file.write_bytes(content)
        with pytest.raises(ConfigError):
            read_enrolment(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_enrolment(tmp_path / "none")
    small = ec.generate_private_key(ec.SECP256R1())
    file.write_text(file_text(_signed(card, "acme", small)))
    with pytest.raises(ConfigError, match="P-384"):
        read_enrolment(file)
    file.write_text(file_text(_signed(card, "acme", declared_users=10**12)))
    with pytest.raises(ConfigError, match="more people than there are"):
        read_enrolment(file)


def test_a_comment_does_not_make_another_key() -> None:
    text = write_public_key(ec.generate_private_key(ec.SECP384R1()).public_key())
    assert key_bytes(text) == key_bytes(text + " somebody@somewhere")


def test_commands_at_once_lose_nothing(path: Path, card: FederationCard) -> None:
    names = [f"tenant{number}" for number in range(12)]
    threads = [threading.Thread(target=invite_tenant, args=(path, name, card, "localhost:1", b"CA")) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {entry.name for entry in read_roster(path).tenants} == {"acme", "globex", *names}


def test_a_damaged_roster_says_so(path: Path) -> None:
    path.write_text(path.read_text()[:-5])
    with pytest.raises(ConfigError, match="restore it from a backup"):
        read_roster(path)
