"""Who may take part: invited names, enrolled keys, and what each tenant declared and promised.

The roster is one file, `tenants.json`. A running server reads it anew when it changes, so that `invite`, `enroll` and
`revoke` work the same whether a server runs or not. What a tenant weighs comes from here and never from a message.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives import serialization

from fedprofile.common.card import FederationCard, Name, Sha256
from fedprofile.common.config import Frozen, validate
from fedprofile.common.enrolment import Enrolment, Invite, Promise, file_text, read_exchanged, read_public_key
from fedprofile.common.errors import ConfigError, InputError, PolicyRefusal, RefusalCode
from fedprofile.server.files import json_bytes, write_atomically

LARGEST_POPULATION = 10**10


class EnrolledTenant(Frozen):
    """What the enrolment file said, and what follows from it."""

    public_key: str
    card_hash: Sha256
    declared_users: int
    promise: Promise
    evaluation_noise: float
    """Standard deviation of one cell of this tenant's evaluation tables; follows from card and promise."""
    at: str


class RosterEntry(Frozen):
    """One name that was invited."""

    name: Name
    invited_at: str
    enrolled: EnrolledTenant | None = None
    revoked_at: str | None = None

    @property
    def active(self) -> bool:
        """Whether it is enrolled and not revoked."""
        return self.enrolled is not None and self.revoked_at is None


class Roster(Frozen):
    """`tenants.json`."""

    format: Literal[1] = 1
    tenants: tuple[RosterEntry, ...] = ()

    def find(self, name: str) -> RosterEntry | None:
        """The entry of a name."""
        return next((entry for entry in self.tenants if entry.name == name), None)

    def replace(self, entry: RosterEntry) -> "Roster":
        """A copy in which `entry` stands for its name."""
        others = tuple(known for known in self.tenants if known.name != entry.name)
        ordered = sorted((*others, entry), key=lambda known: known.name)
        return Roster(tenants=tuple(ordered))


@dataclass(frozen=True)
class Outcome:
    """What `enroll` did."""

    entry: RosterEntry
    changed: bool


def read_roster(path: Path) -> Roster:
    """Read the roster; a missing file is an empty one.

    Args:
        path: `tenants.json`.

    Returns:
        The roster.

    Raises:
        ConfigError: The file is damaged.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Roster()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as a roster; restore it from a backup.") from error
    return validate(data, Roster, str(path))


def invite_tenant(path: Path, name: str, card: FederationCard, address: str, ca: bytes) -> Invite:
    """Put a name on the roster and make its invite; inviting again gives the same.

    Args:
        path: `tenants.json`.
        name: The tenant's.
        card: The federation card.
        address: `host:port` of the public listener.
        ca: The CA certificate, PEM.

    Returns:
        The invite, to be written with `file_text`.

    Raises:
        ConfigError: The name is not a name.
    """
    invite = validate(
        {
            "tenant": name,
            "address": address,
            "ca": ca.decode(),
            "card": card.canonical().decode(),
            "card_hash": card.hash,
        },
        Invite,
        "invite",
    )
    with _locked(path):
        roster = read_roster(path)
        if roster.find(name) is None:
            _write(path, roster.replace(RosterEntry(name=name, invited_at=_now())))
    return invite


def enroll_tenant(path: Path, enrolment: Enrolment, card: FederationCard, evaluation_noise: float) -> Outcome:
    """Accept a tenant.

    Args:
        path: `tenants.json`.
        enrolment: As `read_enrolment` gave it, its signature checked.
        card: The federation card.
        evaluation_noise: See `EnrolledTenant`.

    Returns:
        The entry, and whether anything changed: the same file again changes nothing.

    Raises:
        ConfigError: The name was not invited.
        InputError: The name is enrolled with another key, or the key under another name.
        PolicyRefusal: Another card was agreed to, or the promise is weaker than the card allows.
    """
    check_promise(enrolment, card)
    with _locked(path):
        roster = read_roster(path)
        entry = roster.find(enrolment.tenant)
        if entry is None:
            raise ConfigError(f"tenant '{enrolment.tenant}' was not invited; run `flower-server invite` for it first.")
        for other in roster.tenants:
            if other.enrolled is not None and other.name != entry.name and _same_key(other.enrolled, enrolment):
                raise InputError(
                    f"the key of tenant '{entry.name}' is already enrolled as '{other.name}'; every tenant needs its "
                    "own key: let it join anew in a directory of its own."
                )
        if entry.active and entry.enrolled is not None and not _same_key(entry.enrolled, enrolment):
            raise InputError(
                f"tenant '{entry.name}' is enrolled with another key; if it made a new one, run "
                f"`flower-server revoke {entry.name}` first."
            )
        enrolled = EnrolledTenant(
            public_key=enrolment.public_key,
            card_hash=enrolment.card_hash,
            declared_users=enrolment.declared_users,
            promise=enrolment.promise,
            evaluation_noise=evaluation_noise,
            at=_now(),
        )
        if (
            entry.active
            and entry.enrolled is not None
            and enrolled == entry.enrolled.model_copy(update={"at": enrolled.at})
        ):
            return Outcome(entry, changed=False)
        entry = entry.model_copy(update={"enrolled": enrolled, "revoked_at": None})
        _write(path, roster.replace(entry))
        return Outcome(entry, changed=True)


def check_promise(enrolment: Enrolment, card: FederationCard) -> None:
    """Check that an enrolment is for this card and within it.

    Args:
        enrolment: What the tenant sent.
        card: The federation card.

    Raises:
        PolicyRefusal: It is not.
    """
    if enrolment.card_hash != card.hash:
        raise PolicyRefusal(
            f"tenant '{enrolment.tenant}' agreed to card {enrolment.card_hash[:12]}..., this federation's card is "
            f"{card.hash[:12]}...; send it a new invite.",
            RefusalCode.CARD,
        )
    promise = enrolment.promise
    if promise.epsilon > card.max_epsilon:
        raise PolicyRefusal(
            f"tenant '{enrolment.tenant}' promises epsilon={promise.epsilon:g} (delta={promise.delta:g}, unit=user, "
            f"adjacency=add-or-remove-one), weaker than the card's max_epsilon={card.max_epsilon:g}; "
            "let it lower run.epsilon and join anew."
        )


def revoke_tenant(path: Path, name: str) -> RosterEntry:
    """Take an enrolment back; a running server refuses the tenant from then on.

    Args:
        path: `tenants.json`.
        name: The tenant's.

    Returns:
        The entry, revoked.

    Raises:
        ConfigError: Nobody of that name is on the roster.
    """
    with _locked(path):
        roster = read_roster(path)
        entry = roster.find(name)
        if entry is None:
            known = ", ".join(tenant.name for tenant in roster.tenants) or "nobody"
            raise ConfigError(f"tenant '{name}' is not on the roster; on it: {known}.")
        if entry.revoked_at is None:
            entry = entry.model_copy(update={"revoked_at": _now()})
            _write(path, roster.replace(entry))
        return entry


def key_bytes(public_key: str) -> bytes:
    """An OpenSSH public key in the form in which Flower's Fleet API compares keys.

    Args:
        public_key: One line of OpenSSH text.

    Returns:
        SubjectPublicKeyInfo, PEM.

    Raises:
        ConfigError: It is not such a key.
    """
    key = read_public_key(public_key)
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def read_enrolment(path: Path) -> Enrolment:
    """Read an enrolment and check its signature.

    Args:
        path: The file that the tenant sent.

    Returns:
        The enrolment.

    Raises:
        ConfigError: It is not an enrolment, or its signature does not fit.
    """
    enrolment = read_exchanged(path, Enrolment)
    enrolment.verified_key()
    if enrolment.declared_users >= LARGEST_POPULATION:
        raise ConfigError(
            f"{path}: declared_users={enrolment.declared_users} is more people than there are; "
            "ask the tenant for a new enrolment."
        )
    return enrolment


def write_invite(invite: Invite, path: Path) -> None:
    """Write the invite's file."""
    write_atomically(path, file_text(invite).encode())


def _same_key(enrolled: EnrolledTenant, enrolment: Enrolment) -> bool:
    # A comment at the end of an OpenSSH line does not make another key of it.
    return key_bytes(enrolled.public_key) == key_bytes(enrolment.public_key)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _write(path: Path, roster: Roster) -> None:
    write_atomically(path, json_bytes(roster.model_dump(mode="json")))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Two commands at once must not lose one another's change."""
    descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
