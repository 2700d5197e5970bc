"""Keys and certificates of a federation."""

import stat
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason='the extra is not installed: pip install "tap_hf[flower]"')

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from tap_hf.federation.engines.flower.keys import FederationKeyError, make_keys, read_site_keys


def test_every_private_key_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    make_keys(tmp_path / "keys", ["a", "b"], ["localhost"])
    private = {"ca.key", "server.key", "a.key", "b.key"}
    assert private <= {path.name for path in (tmp_path / "keys").iterdir()}
    assert {stat.S_IMODE((tmp_path / "keys" / name).stat().st_mode) for name in private} == {0o600}


def test_a_site_that_is_added_later_leaves_all_others_as_they_are(tmp_path: Path) -> None:
    make_keys(tmp_path, ["a"], ["localhost"])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    made = make_keys(tmp_path, ["a", "b"], ["localhost"])
    assert {path.name for path in made} == {"b.key", "b.pub"}
    assert {path: path.read_bytes() for path in before} == before
    assert sorted(read_site_keys(tmp_path)) == ["a", "b"]


def test_a_public_key_belongs_to_its_private_one(tmp_path: Path) -> None:
    make_keys(tmp_path, ["a", "b"], ["localhost"])
    for site, public in read_site_keys(tmp_path).items():
        private = serialization.load_ssh_private_key((tmp_path / f"{site}.key").read_bytes(), None)
        pem, info = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        assert private.public_key().public_bytes(pem, info) == public


def test_openssl_verifies_the_server_for_its_hosts_only(tmp_path: Path) -> None:
    make_keys(tmp_path, ["a"], ["fl.example.org", "192.0.2.7"])
    check = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", str(tmp_path / "ca.crt")]
    certificate = str(tmp_path / "server.pem")
    good = [["-verify_hostname", "fl.example.org"], ["-verify_ip", "192.0.2.7"]]
    for host in good:
        subprocess.run([*check, *host, certificate], check=True, capture_output=True)  # noqa: S603
    for host in (["-verify_hostname", "example.org"], ["-verify_ip", "192.0.2.8"]):
        assert subprocess.run([*check, *host, certificate], capture_output=True).returncode  # noqa: S603


def test_the_authority_cannot_sign_for_another_authority(tmp_path: Path) -> None:
    make_keys(tmp_path, ["a"], ["localhost"])
    authority = x509.load_pem_x509_certificate((tmp_path / "ca.crt").read_bytes())
    server = x509.load_pem_x509_certificate((tmp_path / "server.pem").read_bytes())
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


@pytest.mark.parametrize("site", ["../a", "a/b", "", "a b"])
def test_a_site_that_is_no_name_is_refused(tmp_path: Path, site: str) -> None:
    with pytest.raises(FederationKeyError, match="expected a client id"):
        make_keys(tmp_path / "keys", [site], ["localhost"])
    assert not list(tmp_path.rglob("*.key"))


def test_a_public_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pub").write_text(
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGV4YW1wbGVleGFtcGxlZXhhbXBsZWV4YW1wbGUxMjM0 a"
    )
    with pytest.raises(FederationKeyError, match=r"a\.pub is a key of another kind|a\.pub is not a public key"):
        read_site_keys(tmp_path)
    with pytest.raises(FederationKeyError, match="has no public keys of sites"):
        read_site_keys(tmp_path / "elsewhere")
