"""The authority signs servers and nothing else, and private files are private."""

import ipaddress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from fedprofile.server.certificates import new_authority, new_server_certificate


def test_verifies_for_its_names_and_no_other() -> None:
    authority = new_authority("test")
    issued = new_server_certificate(authority, "federation.example.org")
    builder = PolicyBuilder().store(Store([authority.certificate]))
    for name in (x509.DNSName("federation.example.org"), x509.DNSName("localhost"),
                 x509.IPAddress(ipaddress.ip_address("127.0.0.1"))):  # fmt: skip
        builder.build_server_verifier(name).verify(issued.certificate, [])
    with pytest.raises(VerificationError):
        builder.build_server_verifier(x509.DNSName("example.org")).verify(issued.certificate, [])


def test_another_authority_of_the_same_name_is_another() -> None:
    issued = new_server_certificate(new_authority("test"), "localhost")
    builder = PolicyBuilder().store(Store([new_authority("test").certificate]))
    with pytest.raises(VerificationError):
        builder.build_server_verifier(x509.DNSName("localhost")).verify(issued.certificate, [])


def test_an_address_is_an_address_and_not_a_name() -> None:
    issued = new_server_certificate(new_authority("test"), "192.0.2.7")
    names = issued.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert ipaddress.ip_address("192.0.2.7") in names.get_values_for_type(x509.IPAddress)
    assert "192.0.2.7" not in names.get_values_for_type(x509.DNSName)


def test_the_server_certificate_cannot_sign() -> None:
    issued = new_server_certificate(new_authority("test"), "localhost")
    extensions = issued.certificate.extensions
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign


def test_keys_are_private_and_long_enough(tmp_path: Path) -> None:
    authority = new_authority("x" * 200)
    authority.write(tmp_path / "ca.key", tmp_path / "ca.crt")
    assert (tmp_path / "ca.key").stat().st_mode & 0o777 == 0o600
    assert isinstance(authority.key.curve, ec.SECP384R1)
    assert b"PRIVATE" not in (tmp_path / "ca.crt").read_bytes()
