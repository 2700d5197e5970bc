"""Certificates and keys of a federation: by which sites know the server, and the server knows its sites."""

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tap_hf.atomic_files import private_files, write_atomically
from tap_hf.errors import TapError
from tap_hf.pairs import NAME_PATTERN

CA_CERTIFICATE, CA_KEY = "ca.crt", "ca.key"
SERVER_CERTIFICATE, SERVER_KEY = "server.pem", "server.key"
_SKEW = timedelta(days=1)  # clocks of sites may be behind
_VALIDITY = timedelta(days=397)  # the longest of a server that systems accept


class FederationKeyError(TapError):
    """A key or certificate that cannot be made or read."""


@dataclass(frozen=True)
class Tls:
    """What sites know the server by: files, as PEM.

    Attributes:
        certificate: with the chain, if there is one.
        key: without a password.
        authority: certificate of the authority that signed it; `None` for those of the operating system.
    """

    certificate: Path
    key: Path
    authority: Path | None


def make_keys(folder: Path, sites: Sequence[str], hosts: Sequence[str]) -> list[Path]:
    """Make what a folder lacks of an authority, a server's certificate, and a key for each site; return the new files.

    Existing files are kept, so that a site can be added later.

    Args:
        folder: is created, readable by this user only.
        sites: client ids.
        hosts: names and addresses under which sites reach the server.

    Raises:
        FederationKeyError: if a site's id is not a name, or the folder's authority cannot be read.
    """
    if wrong := [site for site in sites if not re.fullmatch(NAME_PATTERN, site)]:
        raise FederationKeyError(f"Got the site {wrong[0]!r}; expected a client id, such as clinic_a.")
    made = dict[Path, bytes]()
    with private_files():
        folder.mkdir(parents=True, exist_ok=True)
        authority = _load_authority(folder) or _new_authority(folder, made)
        if not (folder / SERVER_KEY).exists():
            key = ec.generate_private_key(ec.SECP256R1())
            made[folder / SERVER_CERTIFICATE] = _pem(_server_certificate(key, hosts, *authority))
            made[folder / SERVER_KEY] = _private_pem(key)
        for site in sites:
            if not (folder / f"{site}.key").exists():
                made |= {folder / name: content for name, content in _site_key(site).items()}
        for path, content in made.items():
            write_atomically(path, content)
    return list(made)


def read_site_keys(folder: Path) -> dict[str, bytes]:
    """Return each site's public key, as PEM, from the files `SITE.pub` of a folder.

    Raises:
        FederationKeyError: if there is none, or one is not a key of a site.
    """
    keys = {path.stem: _read_public_key(path) for path in sorted(folder.glob("*.pub"))}
    if not keys:
        raise FederationKeyError(
            f"{folder} has no public keys of sites (SITE.pub). `tap-hf federation keys` makes keys; each site sends "
            "its .pub file to the server."
        )
    return keys


def loopback_certificate() -> dict[str, bytes]:
    """Return a new authority and a certificate for connections inside one machine, by file name."""
    key = ec.generate_private_key(ec.SECP256R1())
    authority = _certificate_of_authority(key)
    own = ec.generate_private_key(ec.SECP256R1())
    certificate = _server_certificate(own, ["127.0.0.1", "localhost"], authority, key)
    return {CA_CERTIFICATE: _pem(authority), SERVER_CERTIFICATE: _pem(certificate), SERVER_KEY: _private_pem(own)}


def _new_authority(folder: Path, made: dict[Path, bytes]) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _certificate_of_authority(key)
    made |= {folder / CA_CERTIFICATE: _pem(certificate), folder / CA_KEY: _private_pem(key)}
    return certificate, key


def _load_authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None:
    if not (folder / CA_KEY).exists():
        return None
    try:
        certificate = x509.load_pem_x509_certificate((folder / CA_CERTIFICATE).read_bytes())
        key = serialization.load_pem_private_key((folder / CA_KEY).read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise FederationKeyError(f"{folder / CA_KEY} cannot be used: {error}. Give another folder.") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise FederationKeyError(f"{folder / CA_KEY} is not a key that `tap-hf federation keys` made.")
    return certificate, key


def _certificate_of_authority(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = _name("tap_hf federation")
    builder = _builder(name, name, key)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return builder.add_extension(_usage(of_authority=True), critical=True).sign(key, hashes.SHA256())


def _server_certificate(
    key: ec.EllipticCurvePrivateKey,
    hosts: Sequence[str],
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    builder = _builder(_name(hosts[0]), authority.subject, key)
    builder = builder.add_extension(x509.SubjectAlternativeName(list(map(_host, hosts))), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(of_authority=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    return builder.add_extension(issuer, critical=False).sign(authority_key, hashes.SHA256())


def _builder(name: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder(issuer, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now - _SKEW + _VALIDITY)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])  # the standard's longest name


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        pass
    try:
        return x509.DNSName(text)
    except ValueError as error:
        raise FederationKeyError(f"Got the host {text!r}; expected a name or an address of the server.") from error


def _usage(of_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not of_authority,
        key_cert_sign=of_authority,
        crl_sign=of_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _site_key(site: str) -> Mapping[str, bytes]:
    """Return a site's files; Flower reads keys as OpenSSH writes them (`ssh-keygen -t ecdsa -b 384`)."""
    key = ec.generate_private_key(ec.SECP384R1())
    none = serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, none)
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return {f"{site}.key": private, f"{site}.pub": public + f" {site}\n".encode()}


def _read_public_key(path: Path) -> bytes:
    try:
        key = serialization.load_ssh_public_key(path.read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise FederationKeyError(f"{path} is not a public key: {error}.") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise FederationKeyError(
            f"{path} is a key of another kind; expected one of `tap-hf federation keys`, or of `ssh-keygen -t ecdsa`."
        )
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    none = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, none)
