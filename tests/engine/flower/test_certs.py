"""Certificates and node keys: verified by others (cryptography, Python's ssl, OpenSSH), never overwritten."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import stat
import subprocess
import threading
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest

pytest.importorskip("cryptography")

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key, load_ssh_public_key
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from fedquilt.core.errors import FedquiltError
from fedquilt.engine.flower.certs import (
    AUTHORITY_DAYS,
    SERVER_DAYS,
    authority,
    node_key,
    server_certificate,
    valid_until,
)

HOSTS = ("fl.example.org", "10.1.2.3", "fd00::7")


@pytest.fixture
def made(tmp_path):
    """A folder with an authority and a server certificate for ``HOSTS``."""
    authority(tmp_path)
    server_certificate(tmp_path, HOSTS)
    return tmp_path


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def verified(folder: Path, host: str, trusted: Path | None = None, moment: datetime | None = None) -> int:
    """The length of the chain that cryptography's verifier builds for a host."""
    name = x509.DNSName(host) if host[-1].isalpha() else x509.IPAddress(ip_address(host))
    builder = PolicyBuilder().store(Store([certificate((trusted or folder) / "ca.crt")]))
    verifier = builder.time(moment or datetime.now(UTC)).build_server_verifier(name)
    return len(verifier.verify(certificate(folder / "server.crt"), []))


def shake_hands(folder: Path, host: str, trusted: Path | None = None) -> str:
    """What a client that trusts one authority and calls the server by ``host`` gets: the protocol's version."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(folder / "server.crt", folder / "server.key")
    calling = ssl.create_default_context(cafile=str((trusted or folder) / "ca.crt"))
    left, right = socket.socketpair()
    left.settimeout(20)
    right.settimeout(20)

    def serve() -> None:
        try:
            with serving.wrap_socket(left, server_side=True) as secured:
                secured.sendall(b"hello")
        except OSError:
            left.close()  # the client has said why

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with calling.wrap_socket(right, server_hostname=host) as secured:
            assert secured.recv(5) == b"hello"
            return str(secured.version())
    finally:
        right.close()
        thread.join(20)


@pytest.mark.parametrize("host", [*HOSTS, "localhost", "127.0.0.1", "::1"])
def test_the_chain_verifies_for_every_host_it_was_made_for_and_for_loopback(made, host):
    assert verified(made, host) == 2
    assert shake_hands(made, host) in ("TLSv1.3", "TLSv1.2")


@pytest.mark.parametrize("host", ["evil.example.org", "example.org", "10.1.2.4"])
def test_another_host_is_refused(made, host):
    with pytest.raises(VerificationError):
        verified(made, host)
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        shake_hands(made, host)


def test_a_client_of_another_authority_refuses_the_server(made, tmp_path):
    other = tmp_path / "other"
    authority(other)
    with pytest.raises(VerificationError):
        verified(made, "localhost", trusted=other)
    with pytest.raises(ssl.SSLCertVerificationError, match=r"self-signed|unable to get local issuer|signature"):
        shake_hands(made, "localhost", trusted=other)


def test_what_the_certificates_are_for(made):
    signer, server = certificate(made / "ca.crt"), certificate(made / "server.crt")
    constraints = signer.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value.ca is True
    assert constraints.value.path_length == 0
    usage = signer.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.key_cert_sign
    assert not usage.value.digital_signature
    assert server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert not server.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fl.example.org", "localhost"]
    assert [str(one) for one in names.get_values_for_type(x509.IPAddress)] == [
        "10.1.2.3",
        "fd00::7",
        "127.0.0.1",
        "::1",
    ]
    server.verify_directly_issued_by(signer)


def test_how_long_they_are_valid(made, tmp_path):
    now = datetime.now(UTC)
    assert abs(valid_until(made / "ca.crt") - now - timedelta(days=AUTHORITY_DAYS)) < timedelta(minutes=5)
    assert abs(valid_until(made / "server.crt") - now - timedelta(days=SERVER_DAYS)) < timedelta(minutes=5)
    assert verified(made, "localhost", moment=now - timedelta(minutes=30)) == 2  # a node whose clock is behind
    with pytest.raises(VerificationError):
        verified(made, "localhost", moment=now + timedelta(days=SERVER_DAYS + 1))
    short = tmp_path / "short"
    authority(short, days=30)
    server_certificate(short, ())
    assert valid_until(short / "server.crt") <= valid_until(short / "ca.crt")


def test_an_authority_whose_time_is_over_signs_nothing(tmp_path):
    authority(tmp_path, days=0)
    with pytest.raises(FedquiltError, match=r"ca\.crt: valid until .* only; make a new authority in another folder"):
        server_certificate(tmp_path, ())


@pytest.mark.skipif(os.name == "nt", reason="Windows has other rights")
def test_private_keys_are_for_their_owner_only(made):
    before = os.umask(0)
    try:
        node_key(made, "hospital-a")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in made.iterdir()}
    assert modes == {
        "ca.key": 0o600,
        "server.key": 0o600,
        "hospital-a": 0o600,
        "ca.crt": 0o644,
        "server.crt": 0o644,
        "hospital-a.pub": 0o644,
    }


def test_curves(made):
    signing = load_pem_private_key((made / "ca.key").read_bytes(), None)
    assert isinstance(signing, ec.EllipticCurvePrivateKey)
    assert signing.curve.name == "secp256r1"
    node = load_ssh_private_key(node_key(made, "hospital-a").key.read_bytes(), None)
    assert isinstance(node, ec.EllipticCurvePrivateKey)
    assert node.curve.name == "secp384r1"
    public = load_ssh_public_key((made / "hospital-a.pub").read_bytes())
    assert public == node.public_key()


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="OpenSSH is not installed")
def test_openssh_reads_a_nodes_key(tmp_path):
    pair = node_key(tmp_path, "hospital-a")
    output = subprocess.run(["ssh-keygen", "-y", "-f", pair.key], capture_output=True, text=True, check=True).stdout
    assert output.split()[:2] == pair.public.read_text().split()[:2]
    assert output.startswith("ecdsa-sha2-nistp384 ")
    assert pair.public.read_text().endswith(" hospital-a\n")


def test_nothing_is_overwritten(made):
    node_key(made, "hospital-a")
    before = {path: path.read_bytes() for path in made.iterdir()}
    with pytest.raises(FedquiltError, match=r"ca\.key: is there already and is never overwritten"):
        authority(made)
    with pytest.raises(FedquiltError, match=r"server\.key: is there already and is never overwritten; renew it"):
        server_certificate(made, HOSTS)
    with pytest.raises(FedquiltError, match=r"hospital-a: is there already and is never overwritten; a node keeps"):
        node_key(made, "hospital-a")
    (made / "ca.key").unlink()
    with pytest.raises(FedquiltError, match=r"ca\.crt: is there already"):
        authority(made)
    assert {path: path.read_bytes() for path in made.iterdir()} == {
        path: content for path, content in before.items() if path.name != "ca.key"
    }


def test_a_server_certificate_is_renewed_when_asked(made):
    before = certificate(made / "server.crt")
    server_certificate(made, ("new.example.org",), renew=True)
    assert certificate(made / "server.crt").serial_number != before.serial_number
    assert shake_hands(made, "new.example.org")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(made, HOSTS[0])
    assert stat.S_IMODE((made / "server.key").stat().st_mode) == 0o600 or os.name == "nt"
    assert not list(made.glob("*.part"))


def test_a_missing_or_strange_authority_is_named(tmp_path):
    with pytest.raises(FedquiltError, match=r"ca\.crt: cannot be read \(No such file"):
        server_certificate(tmp_path, ())
    authority(tmp_path)
    authority(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "ca.key", tmp_path / "ca.key")
    with pytest.raises(FedquiltError, match=r"ca\.key: not the key of .*ca\.crt"):
        server_certificate(tmp_path, ())
    (tmp_path / "ca.key").write_text("nothing")
    with pytest.raises(FedquiltError, match=r"ca\.key: not a private key"):
        server_certificate(tmp_path, ())
    assert not (tmp_path / "server.key").exists()


@pytest.mark.parametrize("host", ["https://fl.example.org", "fl.example.org:8000", "a b", "", "-a.org", "*.org"])
def test_a_host_that_is_none_is_refused_before_anything_is_written(tmp_path, host):
    authority(tmp_path)
    with pytest.raises(FedquiltError, match=r"neither a host name nor an address; .*without the port"):
        server_certificate(tmp_path, (host,))
    assert not (tmp_path / "server.key").exists()


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "a b", "a.pub", "ca.key"])
def test_a_node_name_that_is_no_file_name_is_refused(tmp_path, name):
    with pytest.raises(FedquiltError, match="not a name for a node; allowed: letters"):
        node_key(tmp_path / "keys", name)
    assert not (tmp_path / "keys").exists()
