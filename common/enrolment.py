"""The two files that operator and tenant exchange before a federation: the invite and the enrolment.

    TENANT.invite   (operator -> tenant)   address, CA certificate, federation card and its hash
    TENANT.enroll   (tenant -> operator)   public key, card hash, declared users, the promise made, a signature

Neither holds a secret. The signature proves that whoever wrote the enrolment holds the private key, and that the
declared users and the promise are the ones that the key's holder agreed to.
"""

import base64
import binascii
import json
from pathlib import Path
from typing import Literal, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import Field

from fedprofile.common.card import FederationCard, Name, Sha256, card_from_canonical
from fedprofile.common.config import Frozen, validate
from fedprofile.common.errors import ConfigError

MAX_FILE_BYTES = 4 << 20

Exchanged = TypeVar("Exchanged", bound=Frozen)


class Invite(Frozen):
    """What an operator hands to one tenant."""

    format: Literal[1] = 1
    tenant: Name
    address: str = Field(pattern=r"^\S+:\d{1,5}$")
    """`host:port` of the Fleet listener."""
    ca: str
    """The federation's CA certificate, PEM."""
    card: str
    """The federation card in canonical form."""
    card_hash: Sha256

    def read_card(self) -> FederationCard:
        """The card, checked against its hash.

        Returns:
            The card.

        Raises:
            ConfigError: It is not a card in canonical form, or has another hash.
        """
        card = card_from_canonical(self.card.encode(), "invite")
        if card.hash != self.card_hash:
            raise ConfigError(
                f"invite: the card has hash {card.hash[:12]}..., the invite names {self.card_hash[:12]}...; "
                "ask the operator for a new invite."
            )
        return card


class Promise(Frozen):
    """What the tenant promises its users in this federation; an epsilon never travels alone."""

    epsilon: float = Field(gt=0)
    delta: float = Field(gt=0, lt=1)
    unit: Literal["user"] = "user"
    adjacency: Literal["add-or-remove-one"] = "add-or-remove-one"
    model: Literal["local"] = "local"
    accountant: str = "prv"


class Enrolment(Frozen):
    """What a tenant answers. `signature` covers every other field."""

    format: Literal[1] = 1
    tenant: Name
    public_key: str
    """EC P-384 in OpenSSH form."""
    card_hash: Sha256
    declared_users: int = Field(ge=10)
    promise: Promise
    signature: str = ""
    """Base64 of an ECDSA signature with SHA-256 over `signed_bytes()`."""

    def signed_bytes(self) -> bytes:
        """Canonical JSON of everything but the signature: sorted keys, no spaces, UTF-8."""
        fields = self.model_dump(mode="json", exclude={"signature"})
        return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    def signed_by(self, key: ec.EllipticCurvePrivateKey) -> "Enrolment":
        """This enrolment with a signature.

        Args:
            key: The private half of `public_key`.

        Returns:
            A copy.
        """
        signature = key.sign(self.signed_bytes(), ec.ECDSA(hashes.SHA256()))
        return self.model_copy(update={"signature": base64.b64encode(signature).decode()})

    def verified_key(self) -> ec.EllipticCurvePublicKey:
        """The public key, once the signature is checked.

        Returns:
            The key.

        Raises:
            ConfigError: The key is not EC P-384 in OpenSSH form, or the signature is not its.
        """
        key = read_public_key(self.public_key)
        try:
            key.verify(base64.b64decode(self.signature, validate=True), self.signed_bytes(), ec.ECDSA(hashes.SHA256()))
        except (InvalidSignature, binascii.Error, ValueError):
            raise ConfigError(
                f"enrolment of '{self.tenant}': the signature does not fit the file; ask the tenant to send it again."
            ) from None
        return key


def read_public_key(text: str) -> ec.EllipticCurvePublicKey:
    """A public key from its OpenSSH form.

    Args:
        text: `ecdsa-sha2-nistp384 AAAA...`.

    Returns:
        The key.

    Raises:
        ConfigError: It is not an EC P-384 key in that form.
    """
    try:
        key = serialization.load_ssh_public_key(text.encode())
    except Exception:
        raise ConfigError("public key: is not in OpenSSH form; use the enrolment file as it was written.") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ConfigError("public key: is not an EC P-384 key; use the enrolment file as it was written.")
    return key


def write_public_key(key: ec.EllipticCurvePublicKey) -> str:
    """A public key in OpenSSH form, without a comment."""
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def read_exchanged(path: Path, model: type[Exchanged]) -> Exchanged:
    """Read an invite or an enrolment.

    Args:
        path: The JSON file.
        model: `Invite` or `Enrolment`.

    Returns:
        The validated content.

    Raises:
        ConfigError: The file cannot be read, is too large, is not JSON, or does not fit `model`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of the file.") from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: is larger than {MAX_FILE_BYTES} bytes; give the file as it was sent.")
    try:
        parsed = json.loads(data)
    except (ValueError, RecursionError):
        raise ConfigError(f"{path}: is not JSON; give the file as it was sent.") from None
    required = {name for name, field in model.model_fields.items() if field.is_required()}
    # Of another file's keys a list of what is missing would say nothing; one key that is misspelt is named.
    if not isinstance(parsed, dict) or len(required & parsed.keys()) * 2 < len(required):
        what = "an invite" if model is Invite else "an enrolment"
        end = ".invite file that the operator" if model is Invite else ".enroll file that the tenant"
        raise ConfigError(f"{path}: this is not {what}; give the {end} sent.")
    return validate(parsed, model, str(path))


def file_text(exchanged: Frozen) -> str:
    """An invite or an enrolment as the text of its file."""
    return exchanged.model_dump_json(indent=2) + "\n"
