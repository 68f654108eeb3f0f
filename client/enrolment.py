"""Joining: the tenant's key, and the enrolment file that it signs with it."""

import unicodedata
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedprofile.client.directory import TenantDirectory, write_private
from fedprofile.common.accounting import PrivacyLoss
from fedprofile.common.enrolment import (
    Enrolment,
    Invite,
    Promise,
    file_text,
    read_exchanged,
    write_public_key,
)
from fedprofile.common.errors import ConfigError

_TURNING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
"""Unicode's signs that turn the reading direction around."""


def accept_invite(directory: TenantDirectory, path: Path) -> Invite:
    """Put an invite into a tenant's directory, and make the key where there is none.

    An invite for a directory that has one already replaces it where the card is the agreed one: the operator has
    changed the address. With another card it is kept apart until the next agreement, so that the run that was agreed to
    and `predict` go on. The key and the agreement stay.

    Args:
        directory: Where the tenant's files lie; made where it is missing.
        path: The file that the operator sent.

    Returns:
        The invite.

    Raises:
        ConfigError: The file is not an invite, its card does not fit its hash or holds control characters, its CA is
            not a certificate, or the directory belongs to another tenant.
    """
    invite = read_exchanged(path, Invite)
    try:
        card = invite.read_card()
    except UnicodeError:
        raise ConfigError(f"{path}: the card's text is not Unicode; ask the operator for a new invite.") from None
    refuse_control_characters(path, {"address": invite.address, "card": card.model_dump(mode="json")})
    try:
        x509.load_pem_x509_certificate(invite.ca.encode())
    except ValueError:
        raise ConfigError(f"{path}: 'ca' is not a PEM certificate; ask the operator for a new invite.") from None
    if directory.invite.exists() and (known := directory.read_invite()).tenant != invite.tenant:
        raise ConfigError(
            f"{directory.root}: belongs to tenant '{known.tenant}', the invite is for '{invite.tenant}'; "
            "choose another --dir."
        )
    directory.create()
    if not directory.key.exists():
        make_key(directory.key)
    agreed = directory.read_segment().plan.card_hash if directory.segment.exists() else invite.card_hash
    directory.keep_invite(invite, agreed=invite.card_hash == agreed)
    return invite


def refuse_control_characters(path: Path, value: object, place: str = "") -> None:
    """Refuse text that could break out of the line it is shown in, or turn it around.

    The card's texts are shown on the tenant's terminal and written into its files. A line break, a terminal's escape
    sequence or a sign that reverses the reading direction has no business there.

    Args:
        path: The file that it came in.
        value: Text, or lists and tables of text.
        place: Where in the file.

    Raises:
        ConfigError: There is one; named by its place and code, never shown.
    """
    if isinstance(value, dict):
        for name, inner in value.items():
            refuse_control_characters(path, name, f"{place} (a name)")
            refuse_control_characters(path, inner, f"{place}.{name}" if place else str(name))
    elif isinstance(value, list):
        for inner in value:
            refuse_control_characters(path, inner, place)
    elif isinstance(value, str):
        for one in value:
            if unicodedata.category(one) in ("Cc", "Zl", "Zp") or unicodedata.bidirectional(one) in _TURNING:
                raise ConfigError(
                    f"{path}: {place} holds the control character U+{ord(one):04X}; ask the operator for an invite "
                    "without."
                )


def make_key(path: Path) -> None:
    """Make an EC P-384 key and write it in OpenSSH form, readable by its owner only."""
    key = ec.generate_private_key(ec.SECP384R1())
    data = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    write_private(path, data)


def read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read the tenant's key.

    Args:
        path: The file.

    Returns:
        The key.

    Raises:
        ConfigError: It is missing, readable by others, or not an EC P-384 key.
    """
    try:
        data, mode = path.read_bytes(), path.stat().st_mode
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); restore it, or join in a new --dir.") from error
    if mode & 0o077:
        raise ConfigError(f"{path}: can be read by others; run `chmod 600 {path}`.")
    try:
        key = serialization.load_ssh_private_key(data, None)
    except Exception:
        # The parser raises many types; none of their texts may show a part of a key.
        raise ConfigError(
            f"{path}: is not a private key in OpenSSH form; restore it, or join in a new --dir."
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ConfigError(f"{path}: is not an EC P-384 key; restore it, or join in a new --dir.")
    return key


def write_enrolment(
    directory: TenantDirectory, *, tenant: str, card_hash: str, declared_users: int, promise: PrivacyLoss
) -> Path:
    """Sign and write TENANT.enroll.

    Args:
        directory: The tenant's directory.
        tenant: The name in the invite.
        card_hash: Of the card that was agreed to.
        declared_users: As the person typed it; this file is the only way in which it leaves.
        promise: This federation's share.

    Returns:
        The file to send to the operator. It holds no secret.

    Raises:
        ConfigError: The key cannot be read.
    """
    key = read_key(directory.key)
    enrolment = Enrolment(
        tenant=tenant,
        public_key=write_public_key(key.public_key()),
        card_hash=card_hash,
        declared_users=declared_users,
        promise=Promise(epsilon=promise.epsilon, delta=promise.delta, accountant=promise.accountant),
    ).signed_by(key)
    path = directory.root / f"{tenant}.enroll"
    write_private(path, file_text(enrolment).encode())
    return path
