"""Embed: decode each photograph of an image shard once, cut its patches and encode them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rdm.compute.device import DeviceName, worker_device
from rdm.config import Record, digest_json
from rdm.database.contract import (
    ORIGIN_COLUMNS,
    embeddings_path,
    image_paths,
    metadata_path,
    patches_path,
)
from rdm.database.pixels import iterate_patches
from rdm.encoders import Precision, load_encoder, normalize
from rdm.encoders.encoding import encode_images
from rdm.sources.photographs.decode import DECODING_REVISION
from rdm.storage import Folder, ShardWork, resumable, sha256_file

STAGE = "embed"


@dataclass(frozen=True)
class EmbedTask:
    """One part to embed."""

    folder: Folder
    part: int
    encoder: str
    encoder_digest: str
    batch_size: int
    precision: Precision = "float32"
    device: DeviceName = "auto"

    @property
    def outputs(self) -> tuple[str, str]:
        """The paths of the embeddings and of their metadata, in clip-retrieval's layout."""
        return embeddings_path(self.part), metadata_path(self.part)


class EmbedStats(Record):
    """The number of embedded patches of a part."""

    num_patches: int


def embed_part(task: EmbedTask) -> EmbedStats:
    """Write a part's unit embeddings (float16 [rows, dim]) and metadata, row by row."""
    patches = task.folder.read_table(patches_path(task.part))

    # The boxes, and through the ledgers the pictures' digests, decide every embedded pixel.
    shards = dict.fromkeys(patches.column("image_shard").to_pylist())
    inputs = [patches_path(task.part), *(image_paths(shard)[1] for shard in shards)]
    digests = [sha256_file(task.folder.local(path)) for path in inputs]
    key = digest_json(
        [task.encoder_digest, task.batch_size, task.precision, digests, DECODING_REVISION]
    )

    shard = ShardWork(task.folder, STAGE, f"{task.part:04d}", key, EmbedStats)
    return resumable(shard, lambda: (task.outputs, _embed(task, patches)))


def _embed(task: EmbedTask, patches: pa.Table) -> EmbedStats:
    encoder = load_encoder(
        task.encoder, device=str(worker_device(task.device)), precision=task.precision
    )

    # `raw` keeps its lengths: networks of the official release are conditioned on raw embeddings.
    raw = encode_images(encoder, iterate_patches(task.folder, patches), task.batch_size)
    unit = normalize(raw).astype(np.float16)
    task.folder.write_array(task.outputs[0], unit)
    task.folder.write_table(task.outputs[1], _metadata(task.folder, patches, raw))
    return EmbedStats(num_patches=len(unit))


def _metadata(folder: Folder, patches: pa.Table, raw: NDArray[np.float32]) -> pa.Table:
    """Return a row for each patch in clip-retrieval's layout, with the length of its embedding."""
    shards = patches.column("image_shard").to_pylist()
    rows = patches.column("image_row").to_pylist()
    ledgers = {
        stem: folder.read_table(image_paths(stem)[1], ["key", *ORIGIN_COLUMNS])
        for stem in dict.fromkeys(shards)
    }

    # Each patch's ledger row; a shard's patches share few ledgers, so each is read once.
    picked = [
        ledgers[shard].slice(row, 1).to_pylist()[0] for shard, row in zip(shards, rows, strict=True)
    ]

    return pa.table(
        {
            "patch_id": patches.column("patch_id"),
            "image_id": patches.column("image_id"),
            "image_path": [
                f"{shard}.tar/{row['key']}" for shard, row in zip(shards, picked, strict=True)
            ],
            **{name: [row[name] for row in picked] for name in ORIGIN_COLUMNS},
            # A network trained on raw embeddings is conditioned on unit vector times norm.
            "norm": np.linalg.norm(raw, axis=1).astype(np.float32),
        }
    )
