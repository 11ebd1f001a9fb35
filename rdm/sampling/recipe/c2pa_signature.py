"""Content credentials: pictures signed by C2PA with the user's certificate.

A signature covers every byte of a file, so it is made last. It needs the extra `c2pa`.
"""

from __future__ import annotations

import importlib
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rdm.errors import MissingDependencyError, UsageError
from rdm.sampling.recipe.credits import credit_line, photographs_of
from rdm.sampling.recipe.record import SampleRecord

_MAX_PHOTOGRAPHS = 64  # the recipe in the same file has the others
_ALGORITHMS = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
_FORMAT = "image/png"


@dataclass(frozen=True, eq=False)
class PictureSigner:
    """Signs pictures with a certificate.

    Attributes:
        certificates: PEM, the signer's first and then those that vouch for it.
        key: PEM, the private key; in no text of this object.
        algorithm: of the signature, by C2PA's names.
    """

    certificates: bytes
    key: bytes = field(repr=False)
    algorithm: str

    def signed(self, png: bytes, record: SampleRecord) -> bytes:
        """Return a PNG with its credentials: that a network made it, and from which photographs.

        Args:
            png: finished; whatever changes it afterwards breaks the signature.
            record: what it was drawn from.
        """
        return self._signed(png, _manifest(record), _is_edit(record))

    def _signed(self, png: bytes, manifest: dict[str, Any], is_edit: bool) -> bytes:
        c2pa = _imported("c2pa")
        made = c2pa.C2paDigitalSourceType
        info = c2pa.C2paSignerInfo(self.algorithm.encode(), self.certificates, self.key, None)
        target = io.BytesIO()
        with c2pa.Signer.from_info(info) as signer, c2pa.Builder(json.dumps(manifest)) as builder:
            builder.set_intent(
                c2pa.C2paBuilderIntent.CREATE,
                made.COMPOSITE_WITH_TRAINED_ALGORITHMIC_MEDIA
                if is_edit
                else made.TRAINED_ALGORITHMIC_MEDIA,
            )
            builder.sign(signer, _FORMAT, io.BytesIO(png), target)
        return target.getvalue()


def open_signer(certificates: Path, key: Path) -> PictureSigner:
    """Return a signer that has signed once, so that a broken one is refused before anything is
    drawn.

    Args:
        certificates: a PEM file, the signer's certificate first.
        key: a PEM file of its private key, without a password.

    Raises:
        MissingDependencyError: the extra `c2pa` is not installed.
        UsageError: a file cannot be read, is no certificate or key, or they do not belong together.
    """
    c2pa = _imported("c2pa")
    secret = _read(key, "--c2pa-key")
    signer = PictureSigner(
        _read(certificates, "--c2pa-cert"), secret, _algorithm_of(secret, where=key)
    )

    # A signature on eight pixels: certificates and keys show their flaws only in use.
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(buffer, "PNG")
    try:
        signer._signed(buffer.getvalue(), {"claim_generator_info": [_generator("")]}, False)
    except c2pa.C2paError as error:
        raise UsageError(
            f"no picture can be signed with this certificate and key: {str(error)[:200]}",
            where=certificates,
            fix="a chain of PEM certificates with the signer's first (key usage: digital "
            "signature; not self-signed), and the key that belongs to it",
        ) from error
    return signer


def _manifest(record: SampleRecord) -> dict[str, Any]:
    """Return a manifest that names a picture, the program and the photographs looked at."""
    photographs = photographs_of([record])[:_MAX_PHOTOGRAPHS]
    ingredients = []
    for one in photographs:
        page = one.landing_page or one.url
        ingredients.append(
            {
                "title": one.title or one.image_id,
                "relationship": "inputTo",
                # C2PA has no fields for an author and a license: the line that CC BY asks for.
                "description": credit_line(one),
                **({"informational_URI": page} if page else {}),
            }
        )

    # A picture without a file is named by its pixels.
    return {
        "claim_generator_info": [_generator(record.software.rdm)],
        "title": record.file or f"{record.pixels_sha256[:16]}.png",
        "format": _FORMAT,
        "ingredients": ingredients,
    }


def _generator(version: str) -> dict[str, str]:
    return {"name": "retrieval-diffusion", **({"version": version} if version else {})}


def _is_edit(record: SampleRecord) -> bool:
    return record.start is not None and record.start.has_picture


def _algorithm_of(key: bytes, where: Path) -> str:
    """Return C2PA's name of the signature that a private key makes."""
    keys = _imported("cryptography.hazmat.primitives.serialization")
    try:
        opened = keys.load_pem_private_key(key, password=None)
    except (ValueError, TypeError) as error:
        # What the library says may quote the file.
        raise UsageError(
            "this is no private key in PEM without a password",
            where=where,
            fix="openssl pkcs8 -topk8 -nocrypt -in KEY -out KEY.pem",
        ) from error

    # By the name of its class: the classes themselves are of a package that may be missing.
    kind = type(opened).__name__.lower()
    if "ed25519" in kind:
        return "ed25519"
    if "rsa" in kind:
        return "ps256"

    # Of other keys the curve decides, and not every curve is C2PA's.
    algorithm = _ALGORITHMS.get(getattr(getattr(opened, "curve", None), "name", ""))
    if algorithm is None:
        raise UsageError(
            "C2PA signs with no key of this kind",
            where=where,
            fix="a key on P-256, P-384 or P-521, an Ed25519 key, or an RSA key of 2048 bits",
        )
    return algorithm


def _read(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"the file cannot be read: {error.strerror}", where=path, fix=f"check {option}"
        ) from error


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingDependencyError(
            "pictures are signed by c2pa-python, which is not installed",
            where="--c2pa-cert",
            fix="pip install 'retrieval-diffusion[c2pa]'",
        ) from error
