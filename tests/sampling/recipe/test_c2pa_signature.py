"""Signed pictures; those marked c2pa need the extra, and are run with `-m c2pa`."""

from __future__ import annotations

import importlib.util
import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from written_recipe import recipe

from rdm.errors import MissingDependencyError, UsageError
from rdm.sampling.recipe.c2pa_signature import open_signer
from rdm.sampling.recipe.picture_file import png_bytes, read_picture


def _name(common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Test"),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A signer's certificate with that of its authority, and the signer's key."""
    folder = tmp_path_factory.mktemp("chain")
    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    now = datetime.now(UTC)

    def builder(common: str, public: Any, serial: int) -> x509.CertificateBuilder:
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(_name(common))
            .issuer_name(_name("authority"))
            .public_key(public)
            .serial_number(serial)
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=30))
            .add_extension(identifier, critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        )

    def usage(signs_certificates: bool) -> x509.KeyUsage:
        flags = dict.fromkeys(
            [
                "content_commitment",
                "key_encipherment",
                "data_encipherment",
                "key_agreement",
                "encipher_only",
                "decipher_only",
            ],
            False,
        )
        return x509.KeyUsage(
            digital_signature=not signs_certificates,
            key_cert_sign=signs_certificates,
            crl_sign=signs_certificates,
            **flags,
        )

    root = (
        builder("authority", root_key.public_key(), 1)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage(True), critical=True)
        .sign(root_key, hashes.SHA256())
    )
    leaf = (
        builder("signer", key.public_key(), 2)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage(False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False
        )
        .sign(root_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "chain.pem").write_bytes(leaf.public_bytes(pem) + root.public_bytes(pem))
    (folder / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "chain.pem", folder / "key.pem"


def _read(png: bytes) -> dict[str, Any]:
    import c2pa  # pyright: ignore[reportMissingImports]

    with c2pa.Reader("image/png", io.BytesIO(png)) as reader:
        return json.loads(reader.json())


@pytest.mark.c2pa
def test_a_signed_picture_says_that_a_network_made_it_and_from_whose_photographs(
    chain: tuple[Path, Path], tmp_path: Path
) -> None:
    pixels = np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3)
    record = recipe()
    png = open_signer(*chain).signed(png_bytes(pixels, record), record)
    found = _read(png)
    # The certificate is no one's whom the reader trusts; nothing else is wrong with it.
    assert {one["code"] for one in found.get("validation_status", [])} <= {
        "signingCredential.untrusted"
    }
    manifest = found["manifests"][found["active_manifest"]]
    assert "/trainedAlgorithmicMedia" in json.dumps(manifest["assertions"])
    ingredient = manifest["ingredients"][0]
    credit = record.neighbors[0]
    assert ingredient["relationship"] == "inputTo"
    assert credit.author in ingredient["description"]
    assert credit.license in ingredient["description"]
    assert ingredient["title"] == (credit.title or credit.image_id)
    assert ingredient["informational_URI"] == (credit.landing_page or credit.url)
    # Pixels, recipe and XMP are as they were without it.
    (tmp_path / "signed.png").write_bytes(png)
    again = read_picture(tmp_path / "signed.png")
    assert np.array_equal(again.pixels, pixels)
    assert again.record == record.for_png()


@pytest.mark.c2pa
def test_a_change_of_a_signed_picture_breaks_its_signature(chain: tuple[Path, Path]) -> None:
    record = recipe()
    pixels = np.zeros((32, 32, 3), np.uint8)
    png = open_signer(*chain).signed(png_bytes(pixels, record), record)
    place = png.index(b"retrieval-diffusion", png.index(b"XML:com.adobe.xmp"))
    changed = png[:place] + b"R" + png[place + 1 :]
    codes = {one["code"] for one in _read(changed)["validation_status"]}
    assert "assertion.dataHash.mismatch" in codes


@pytest.mark.c2pa
def test_a_key_of_another_certificate_is_refused_and_not_shown(
    chain: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "no.pem").write_text("no certificate")
    with pytest.raises(UsageError, match="no picture can be signed") as caught:
        open_signer(tmp_path / "no.pem", chain[1])
    secret = chain[1].read_text().splitlines()[1]
    assert secret not in str(caught.value) + repr(open_signer(*chain))


@pytest.mark.c2pa
def test_a_file_that_is_no_key_is_refused(chain: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "no.pem").write_text("no key")
    with pytest.raises(UsageError, match="no private key in PEM"):
        open_signer(chain[0], tmp_path / "no.pem")
    with pytest.raises(UsageError, match="check --c2pa-key"):
        open_signer(chain[0], tmp_path / "gone.pem")


def test_without_the_extra_its_name_is_in_the_error(chain: tuple[Path, Path]) -> None:
    if importlib.util.find_spec("c2pa") is None:
        with pytest.raises(MissingDependencyError, match="not installed") as caught:
            open_signer(*chain)
        assert "retrieval-diffusion[c2pa]" in caught.value.fix
    else:
        assert open_signer(*chain).algorithm == "es256"
