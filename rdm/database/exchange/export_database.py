"""Export living patches: clip-retrieval's folders, Parquet for `datasets`, or RDM's npz parts.

One output part at a time, each with a marker: killed anywhere, the same command goes on. What is
exported holds no deleted patch, so rows move up; `patch_id` is written beside every row.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import JsonValue

from rdm.config import Record, digest_json
from rdm.database.contract import CORNERS, ORIGIN_COLUMNS, embeddings_path, metadata_path
from rdm.database.pixels import iterate_patches
from rdm.database.reader import RetrievalDatabase
from rdm.errors import DatabaseError
from rdm.progress import tracking
from rdm.storage import EncoderRecord, Folder, NoStats, ShardWork, living_rows, resumable

ExportFormat = Literal["clip-retrieval", "datasets", "npz"]
DESCRIPTION = "export.json"
NPZ_ROWS = 2_000_000  # per part of the official release
_ABOUT = (
    "image_id",
    "image_path",
    "caption",
    *ORIGIN_COLUMNS,
    "norm",
    *CORNERS,
    "patch_id",
)


@dataclass(frozen=True, eq=False)
class ExportPart:
    """The living patches of one output part: their rows, and unit vectors float16 [N, dim]."""

    number: int
    count: int
    rows: pa.Table
    vectors: NDArray[np.float16]


class ExportPlan(Record):
    """The size of an export."""

    to: str
    patches: int
    parts: int


class ExportRecord(Record):
    """`export.json`: which export a folder holds, its digest, and whether all of it is there."""

    format: str
    key: str
    version: int
    encoder: EncoderRecord
    embedding_dim: int
    num_patches: int
    finished: bool


class ExportResult(Record):
    """The facts of an export."""

    format: str
    version: int
    num_patches: int
    embedding_dim: int
    encoder: str
    out: str
    unchanged: bool


def export_plan(
    database: RetrievalDatabase, to: ExportFormat, *, images: bool = True
) -> ExportPlan:
    """Return what an export would write. Raises as the export does if pixels are lacking."""
    _check_pixels(database, to, images)
    return ExportPlan(
        to=to, patches=database.version.num_live_patches, parts=len(_groups(database, to))
    )


def export_database(
    database: RetrievalDatabase, to: ExportFormat, out: str, *, images: bool = True
) -> ExportResult:
    """Write the living patches of a version into a folder; a rerun resumes, or does nothing.

    Args:
        database: the version.
        to: `clip-retrieval`: `img_emb/*.npy` and `metadata/*.parquet`. `datasets`: `data/*.parquet`
            with the patch's PNG, its unit vector and its facts. `npz`: parts with `embedding` (not
            normalized), `img_id` and `patch_coords`, as the official release has them, and beside
            each what these cannot hold.
        out: folder or URL.
        images: whether `datasets` gets the pixels.

    Raises:
        DatabaseError: the folder holds something else, or the database lacks the pixels.
        StorageError: a part cannot be read or written.
    """
    # Nothing is touched before the request is known to be possible.
    _check_pixels(database, to, images)

    folder, key = Folder(out), digest_json([database.version.to_json(), to, images])
    description = _description(database, to, key)

    if _is_finished(folder, key):
        folder.delete("_markers")  # what a run that was killed on its last steps left
        return _summary(description, out, unchanged=True)

    # Claim the folder: another export, or a rerun of this one, finds its record from now on.
    folder.make()
    folder.sweep_temporaries()
    folder.write_record(DESCRIPTION, description)
    groups = _groups(database, to)

    def write(number: int) -> tuple[list[str], NoStats]:
        part = _export_part(database, number, len(groups), groups[number])
        return _WRITERS[to](database, folder, part, images), NoStats()

    # Write the missing parts; each leaves a marker that a rerun finds.
    with tracking("export", len(groups), "parts") as tracker:
        for number in range(len(groups)):
            resumable(
                ShardWork(folder, "export", f"{number:05d}", key, NoStats), partial(write, number)
            )
            tracker.advance()

    # Finished: the markers are of no more use.
    folder.write_record(DESCRIPTION, description.model_copy(update={"finished": True}))
    folder.delete("_markers")
    return _summary(description, out, unchanged=False)


def _check_pixels(database: RetrievalDatabase, to: ExportFormat, images: bool) -> None:
    """Raise if the database lacks the pixels of the export, before the folder is claimed."""
    if to == "datasets" and images and not database.has_pixels:
        raise DatabaseError(
            "the pixels are not stored: only embeddings were imported",
            where=database.folder.url,
            fix="--no-images",
        )


def _description(database: RetrievalDatabase, to: ExportFormat, key: str) -> ExportRecord:
    version = database.version
    return ExportRecord(
        format=to,
        key=key,
        version=version.number,
        encoder=version.encoder,
        embedding_dim=version.embedding_dim,
        num_patches=version.num_live_patches,
        finished=False,
    )


def _summary(description: ExportRecord, out: str, *, unchanged: bool) -> ExportResult:
    return ExportResult(
        format=description.format,
        version=description.version,
        num_patches=description.num_patches,
        embedding_dim=description.embedding_dim,
        encoder=description.encoder.name,
        out=out,
        unchanged=unchanged,
    )


def _is_finished(folder: Folder, key: str) -> bool:
    """Return whether the folder holds this very export, finished; refuse any other content."""
    # Without a description only an empty folder, or one with markers alone, is ours.
    if not folder.exists(DESCRIPTION):
        if names := [name for name in folder.names() if name != "_markers"]:
            raise DatabaseError(
                f"the folder is not an export: it holds {', '.join(names[:3])}",
                where=folder.url,
                fix="give a new or empty folder",
            )
        return False

    # Another version, format or choice of pixels has another key.
    found = folder.read_record(DESCRIPTION, ExportRecord)
    if found.key != key:
        raise DatabaseError(
            f"the folder holds the export of version {found.version} to {found.format}",
            where=folder.url,
            fix=f"give a new or empty folder; --version {found.version} goes on with an "
            "unfinished one",
        )
    return found.finished


def _groups(database: RetrievalDatabase, to: ExportFormat) -> list[list[int]]:
    """Return the database's part numbers of each output part, without parts where nothing lives."""
    groups: list[list[int]] = []
    rows = NPZ_ROWS

    # `rows` counts the patches of the last group; it starts full, so that a group is opened.
    for number, alive in enumerate(_living(database)):
        if not alive.any():
            continue
        if to != "npz" or rows + alive.sum() > NPZ_ROWS:
            groups.append([])
            rows = 0
        groups[-1].append(number)
        rows += int(alive.sum())
    return groups


def _living(database: RetrievalDatabase) -> Iterator[NDArray[np.bool_]]:
    for first, vectors in database.parts:
        yield living_rows(database.tombstones, first, len(vectors))


def _export_part(
    database: RetrievalDatabase, number: int, count: int, parts: Sequence[int]
) -> ExportPart:
    """Collect the living rows and vectors of some of the database's parts as one output part."""
    living, version = list(_living(database)), database.version
    tables, vectors = [], []
    for part in parts:
        # Facts of a patch come from its coordinates first, then from what was embedded.
        table = database.folder.read_table(version.parts_of("patches")[part].path)
        metadata = database.folder.read_table(version.parts_of("metadata")[part].path)
        for name in metadata.column_names:
            if name not in table.column_names:
                table = table.append_column(name, metadata[name])

        if "caption" not in table.column_names:
            table = table.append_column("caption", pa.array([""] * table.num_rows))

        tables.append(table.filter(pa.array(living[part])))
        vectors.append(np.asarray(database.parts[part][1])[living[part]])
    return ExportPart(
        number, count, pa.concat_tables(tables, promote_options="default"), np.concatenate(vectors)
    )


def _write_clip_retrieval(
    database: RetrievalDatabase, folder: Folder, part: ExportPart, images: bool
) -> list[str]:
    del database, images
    outputs = [embeddings_path(part.number), metadata_path(part.number)]
    folder.write_array(outputs[0], part.vectors)
    folder.write_table(outputs[1], part.rows.select(_ABOUT))
    return outputs


def _write_datasets(
    database: RetrievalDatabase, folder: Folder, part: ExportPart, images: bool
) -> list[str]:
    """Write one part as `datasets` loads it: `data/train-00000-of-00001.parquet`."""
    dim = part.vectors.shape[1]
    table = part.rows.select(_ABOUT)
    embedding = pa.FixedSizeListArray.from_arrays(pa.array(part.vectors.ravel()), dim)
    table = table.add_column(0, "embedding", embedding)

    # Pictures travel as PNG: the exact pixels that were embedded.
    if images:
        names = [f"{patch_id}.png" for patch_id in part.rows["patch_id"].to_pylist()]
        pictures = [_png(image) for image in iterate_patches(database.folder, part.rows)]
        table = table.add_column(
            0, "image", pa.StructArray.from_arrays([pictures, names], ["bytes", "path"])
        )

    # With its features declared, `datasets` decodes the pictures without being asked to.
    table = table.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": _features(table.schema)}})}
    )
    output = f"data/train-{part.number:05d}-of-{part.count:05d}.parquet"
    folder.write_table(output, table)
    return [output]


def _features(schema: pa.Schema) -> dict[str, JsonValue]:
    """Return the Parquet metadata from which `datasets` knows its columns."""
    features: dict[str, JsonValue] = {}
    for field in schema:
        if field.name == "image":
            features[field.name] = {"_type": "Image"}
        elif field.name == "embedding":
            value: dict[str, JsonValue] = {"dtype": "float16", "_type": "Value"}
            features[field.name] = {
                "feature": value,
                "length": field.type.list_size,
                "_type": "Sequence",
            }
        else:
            features[field.name] = {
                "dtype": _VALUE_TYPES.get(str(field.type), str(field.type)),
                "_type": "Value",
            }
    return features


def _write_npz(
    database: RetrievalDatabase, folder: Folder, part: ExportPart, images: bool
) -> list[str]:
    """Write one part as the official release has them, and a table of what that cannot hold."""
    del database, images
    stem = f"{len(part.vectors)}x{part.vectors.shape[1]}-part_{part.number + 1}"

    # The release stores raw embeddings, and images as numbers instead of names.
    norm = part.rows["norm"].to_numpy().astype(np.float32)
    image_ids = part.rows["image_id"].to_pylist()
    numbers = {image_id: number for number, image_id in enumerate(dict.fromkeys(image_ids))}
    arrays = {
        "embedding": part.vectors.astype(np.float32) * norm[:, None],
        "img_id": np.array([numbers[image_id] for image_id in image_ids], np.int64),
        "patch_coords": np.stack([part.rows[name].to_numpy() for name in CORNERS], axis=1),
    }

    with folder.writing(f"{stem}.npz") as path, open(path, "wb") as file:
        np.savez_compressed(file, **arrays)
    folder.write_table(f"{stem}.parquet", part.rows.select(_ABOUT))
    return [f"{stem}.npz", f"{stem}.parquet"]


_VALUE_TYPES = {"float": "float32", "double": "float64"}  # as `datasets` calls them
_WRITERS = {"clip-retrieval": _write_clip_retrieval, "datasets": _write_datasets, "npz": _write_npz}


def _png(image: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
