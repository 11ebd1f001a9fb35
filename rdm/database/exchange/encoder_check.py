"""Check a declared encoder: encode photographs that are at hand again, and compare the vectors."""

# pyright: reportAttributeAccessIssue=false
# pyarrow ships no types for the functions that it makes at run time.

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rdm.database.contract import CORNERS
from rdm.database.search.recall import audit_sample
from rdm.encoders import Encoder, normalize
from rdm.errors import EncoderMismatchError, SourceError
from rdm.sources import decode_image, open_source
from rdm.storage import Folder

NUM_CHECKED = 32


@dataclass(frozen=True)
class ImportedPart:
    """An imported part: its first patch id, and the paths of its vectors, patches and metadata."""

    first: int
    embeddings: str
    patches: str
    metadata: str


def check_encoder(
    folder: Folder, parts: list[ImportedPart], encoder: Encoder, photographs: str, least: float
) -> str:
    """Encode up to 32 photographs again, compare with the imported vectors; return a verdict.

    Args:
        folder: the database.
        parts: the imported parts.
        encoder: the declared one.
        photographs: a source whose image ids are the imported ids, paths, or the last parts of
            paths.
        least: cosine similarity under which the encoder is another one.

    Raises:
        SourceError: the source has none of the photographs.
        EncoderMismatchError: the vectors are not this encoder's.
    """
    source = open_source(photographs)
    listing = {row["image_id"]: row["location"] for row in source.listing().to_pylist()}

    # Photographs that both the import and the source have, under whichever name fits.
    found = [hit for part in parts for hit in _matching(folder, part, listing)]
    if not found:
        raise SourceError(
            "none of the imported photographs is in this source",
            where=photographs,
            fix="check the ids",
        )

    # A spread over all parts; the fixed seed makes a second import check the same pictures.
    order = audit_sample(np.arange(len(found)), NUM_CHECKED, seed=0).tolist()
    similarities = []
    for position in order:
        part, row, name = found[position]
        # As the embedding was made: decode, crop, encode, normalize.
        image = decode_image(source.read(listing[name]))
        box = folder.read_table(part.patches, list(CORNERS)).slice(row, 1).to_pylist()[0]
        # Where the import knew no box its corners are zeros: the whole photograph was encoded.
        if box["x1"] > box["x0"] and box["y1"] > box["y0"]:
            image = image.crop((box["x0"], box["y0"], box["x1"], box["y1"]))
        own = normalize(encoder.encode_images(encoder.preprocess(image)[None]))[0]
        similarity = float(own @ np.asarray(folder.read_array(part.embeddings)[row], np.float32))

        if similarity < least:
            raise EncoderMismatchError(
                f"the declared encoder's embedding of {name!r} has a cosine similarity of "
                f"{similarity:.4f} to the imported one, under {least:g}",
                where=f"patch {part.first + row}",
                fix="name the encoder that made the embeddings: --encoder",
            )
        similarities.append(similarity)

    return (
        f"declared at import; {len(order)} pictures encoded again, cosine similarity >= "
        f"{min(similarities):.4f}"
    )


def _matching(
    folder: Folder, part: ImportedPart, listing: dict[str, Any]
) -> list[tuple[ImportedPart, int, str]]:
    """Return (part, row, name in the listing) of each row whose photograph the source has."""
    metadata = folder.read_table(part.metadata, ["image_id", "image_path"])
    known, hits = pa.array(list(listing), pa.string()), {}

    # From the weakest name to the strongest: a later match replaces an earlier one.
    last = pc.replace_substring_regex(metadata["image_path"], pattern="^.*/", replacement="")
    for names in (last, metadata["image_path"], metadata["image_id"]):
        rows = np.flatnonzero(pc.is_in(names, value_set=known).to_numpy(zero_copy_only=False))
        hits |= dict(zip(rows.tolist(), names.take(pa.array(rows)).to_pylist(), strict=True))

    return [(part, row, name) for row, name in sorted(hits.items())]
