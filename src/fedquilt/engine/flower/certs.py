"""Certificates and keys for TLS with node authentication: a certificate authority, a server certificate, node keys.

Nodes check the server by its certificate, which the authority has signed. The server checks each node by its key: the
private key stays where it was made, and only the public key is registered with the SuperLink.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedquilt.core.errors import FedquiltError

AUTHORITY_DAYS = 3650
"""Days that the authority's certificate is valid; after that, everyone who trusts it needs a new one."""
SERVER_DAYS = 397
"""Days that a server certificate is valid: a year and a month, also the most that browsers accept."""
OWN_HOSTS = ("localhost", "127.0.0.1", "::1")
"""Hosts in every server certificate: the SuperLink's own child processes connect over loopback."""

_SKEW = timedelta(hours=1)  # so that nodes whose clock is behind accept a new certificate at once


@dataclass(frozen=True)
class Pair:
    """The file of a private key, and the file of its public key or certificate."""

    key: Path
    public: Path


def authority(folder: Path, name: str = "fedquilt federation", days: int = AUTHORITY_DAYS) -> Pair:
    """Make a certificate authority (EC P-256) that signs servers only: ``ca.key`` and ``ca.crt`` in ``folder``.

    Raises
    ------
    FedquiltError
        if one of the files exists, or the folder cannot be written.
    """
    pair = Pair(folder / "ca.key", folder / "ca.crt")
    _absent(pair, "it is used as it is; a new authority belongs into another folder")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        _signed_for(key, subject, subject, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    _write(pair.key, _pem(key), 0o600)
    _write(pair.public, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    return pair


def server_certificate(folder: Path, hosts: Sequence[str], *, days: int = SERVER_DAYS, renew: bool = False) -> Pair:
    """Make ``server.key`` and ``server.crt`` for these host names and addresses, signed by the authority in ``folder``.

    ``localhost``, ``127.0.0.1`` and ``::1`` are added. ``renew`` replaces both files. The certificate expires no later
    than the authority's.

    Raises
    ------
    FedquiltError
        if a file exists and ``renew`` is off, the authority is missing, damaged or expired, or a host is not valid.
    """
    pair = Pair(folder / "server.key", folder / "server.crt")
    if not renew:
        _absent(pair, "renew it with --renew")
    names = tuple(_general_name(host) for host in dict.fromkeys([*hosts, *OWN_HOSTS]))
    signer, signing_key = _authority_in(folder)
    left = signer.not_valid_after_utc - datetime.now(UTC)
    if left <= timedelta(0):
        raise FedquiltError(
            f"{folder / 'ca.crt'}: valid until {signer.not_valid_after_utc:%Y-%m-%d} only; make a new authority in "
            "another folder and send its ca.crt to every organisation"
        )
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, [*hosts, *OWN_HOSTS][0][:64])])
    certificate = (
        _signed_for(key, subject, signer.subject, min(days, left.days), signer=signing_key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(signing_key, hashes.SHA256())
    )
    _write(pair.key, _pem(key), 0o600, replace=renew)
    _write(pair.public, certificate.public_bytes(serialization.Encoding.PEM), 0o644, replace=renew)
    return pair


def node_key(folder: Path, name: str) -> Pair:
    """Make a node's key (EC P-384, in OpenSSH format as Flower requires): ``NAME`` and ``NAME.pub`` in ``folder``.

    Raises
    ------
    FedquiltError
        if one of the files exists, the name is not a valid file name, or the folder cannot be written.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", name) or name.endswith((".pub", ".key", ".crt")):
        raise FedquiltError(
            f"--node {name}: not a name for a node; allowed: letters, digits, '.', '_' and '-', as in hospital-a"
        )
    pair = Pair(folder / name, folder / f"{name}.pub")
    _absent(pair, "a node keeps its key; for another node choose another name")
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    _write(pair.key, private, 0o600)
    _write(pair.public, public + f" {name}\n".encode(), 0o644)
    return pair


def valid_until(certificate: Path) -> datetime:
    """Return when a certificate expires."""
    return _certificate(certificate).not_valid_after_utc


def _authority_in(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    certificate, path = _certificate(folder / "ca.crt"), folder / "ca.key"
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise FedquiltError(f"{path}: cannot be read ({error.strerror}); the authority's key signs servers") from error
    except (ValueError, TypeError) as error:
        raise FedquiltError(f"{path}: not a private key without a password ({error})") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise FedquiltError(f"{path}: not the key of {folder / 'ca.crt'}; restore both from one copy")
    return certificate, key


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise FedquiltError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise FedquiltError(f"{path}: not a certificate ({error})") from error


def _signed_for(
    key: ec.EllipticCurvePrivateKey, subject: x509.Name, issuer: x509.Name, days: int, signer: Any = None
) -> x509.CertificateBuilder:
    now = datetime.now(UTC).replace(microsecond=0)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key((signer or key).public_key()), critical=False)
    )


def _usage(**wanted: bool) -> x509.KeyUsage:
    every = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    more = ("key_cert_sign", "crl_sign", "encipher_only", "decipher_only")
    return x509.KeyUsage(**{name: wanted.get(name, False) for name in (*every, *more)})


def _general_name(host: str) -> x509.GeneralName:
    with suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(host))
    if len(host) > 253 or not re.fullmatch(r"(?!-)[A-Za-z0-9-]{1,63}(\.(?!-)[A-Za-z0-9-]{1,63})*", host):
        raise FedquiltError(
            f"--host {host}: neither a host name nor an address; give the name that the nodes will call, without "
            "https:// and without the port, as in fl.example.org"
        )
    return x509.DNSName(host)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _absent(pair: Pair, advice: str) -> None:
    for path in (pair.key, pair.public):
        if path.exists():
            raise FedquiltError(f"{path}: is there already and is never overwritten; {advice}")


def _write(path: Path, content: bytes, mode: int, replace: bool = False) -> None:
    """Write a file that has these permissions from the start; an existing file is replaced only with ``replace``."""
    part = path.with_name(path.name + ".part") if replace else path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True) if replace else None
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
        os.chmod(part, mode)  # independent of the umask: everyone may read a certificate
        if replace:
            os.replace(part, path)
    except FileExistsError as error:
        raise FedquiltError(f"{path}: is there already and is never overwritten") from error
    except OSError as error:
        raise FedquiltError(f"{path}: cannot be written ({error.strerror})") from error
