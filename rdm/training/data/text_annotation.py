"""Captions of a latent cache: beside every tar the token states of its photographs' captions.

A row is a photograph's, in the order in which the shard's latents name them first; its crops and
their mirror images share it. A photograph without a caption says nothing: its one caption is the
empty text, which is also what stands for a caption that training drops.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from rdm.compute.pool import Pool
from rdm.config import Config, Record, digest_json
from rdm.encoders.text_states import (
    MAX_LENGTH,
    TEXT_DIMS,
    TextEncoderName,
    TextStates,
    load_text_states,
)
from rdm.errors import CacheError
from rdm.generators.conditions import TextConfig
from rdm.sources import QuerySet
from rdm.sources.workers import require_visible
from rdm.storage import Folder, ShardWork, resumable
from rdm.storage.verified import FileDigest, digest_file, npy_rows
from rdm.training.data.annotation import (
    AnnotationInfo,
    open_annotation,
    photographs_of_rows,
    require_same,
)
from rdm.training.data.latent_cache import LatentCache
from rdm.training.data.training_data import ShardRows

INFO_PATH = "text.json"
STAGE = "annotate-text"
FORMAT_VERSION = 1
_BATCH = 64


class TextAnnotationConfig(Config):
    """How captions become token states."""

    encoder: TextEncoderName = Field(default="minilm", description="the frozen text network")
    length: int = Field(default=32, ge=3, le=MAX_LENGTH, description="tokens of a caption")
    captions: int = Field(
        default=2, ge=1, le=255, description="captions kept of a photograph, the first ones"
    )


class TextShardStats(Record):
    """What was written of a shard: how many of its photographs have captions, and its file."""

    num_photographs: int
    num_captioned: int
    file: FileDigest


class TextInfo(AnnotationInfo):
    """`text.json`: what was annotated, and by which network."""

    config: TextAnnotationConfig
    encoder_digest: str
    num_photographs: int
    num_captioned: int
    files: dict[str, FileDigest]


@dataclass(frozen=True)
class AnnotateTask:
    """One shard to annotate: the captions of its photographs, by image id."""

    cache: str
    stem: str
    config: TextAnnotationConfig
    captions: Mapping[str, tuple[str, ...]]
    key: str


def text_dtype(config: TextAnnotationConfig) -> np.dtype[Any]:
    """Return a photograph's row: how many captions it has, the tokens of each, and their states."""
    shape = (config.captions, config.length, TEXT_DIMS[config.encoder])
    return np.dtype(
        [("count", "u1"), ("lengths", "u1", (config.captions,)), ("states", "<f2", shape)]
    )


def annotate_text(cache: str, config: TextAnnotationConfig, pool: Pool) -> TextInfo:
    """Write the captions of a cache's query set beside its latents; a rerun writes what is missing.

    Args:
        cache: folder of a finished cache.
        config: how captions become token states.
        pool: where the text network runs.

    Raises:
        CacheError: there is no cache.
        SourceError: the photographs' source has no captions, or none of the photographs has one.
    """
    latents = LatentCache(cache)
    captions = QuerySet(latents.config.queries).captions()
    digest = load_text_states(config.encoder, config.length).digest
    require_visible(pool, latents.folder)

    # Encode the captions of each shard.
    tasks = [_task(latents, stem, config, captions, digest) for stem in latents.stems]
    done = dict(pool.map(annotate_shard, tasks, stage="annotate text", names=latents.stems))
    stats = [done[number] for number in range(len(tasks))]

    # Describe the files last: an annotation without this does not exist for readers.
    info = TextInfo(
        format_version=FORMAT_VERSION,
        config=config,
        cache_digest=latents.digest,
        encoder_digest=digest,
        num_photographs=sum(shard.num_photographs for shard in stats),
        num_captioned=sum(shard.num_captioned for shard in stats),
        files={text_file(task.stem): shard.file for task, shard in zip(tasks, stats, strict=True)},
    )

    if not info.num_captioned:
        raise CacheError(
            "none of the cache's photographs has a caption",
            where=latents.config.queries.source,
            fix="put captions beside the pictures: KEY.txt or KEY.json in tars, PHOTO.txt in "
            "a folder",
        )
    latents.folder.write_record(INFO_PATH, info)
    return info


def _task(
    latents: LatentCache,
    stem: str,
    config: TextAnnotationConfig,
    captions: Mapping[str, tuple[str, ...]],
    encoder_digest: str,
) -> AnnotateTask:
    images = latents.photographs(stem)
    said = {image: captions.get(image, ())[: config.captions] for image in images}
    # With the captions themselves: a shard whose captions changed is encoded again.
    identity = [FORMAT_VERSION, config.model_dump(mode="json"), encoder_digest, said]
    return AnnotateTask(latents.folder.url, stem, config, said, digest_json(identity))


def annotate_shard(task: AnnotateTask) -> TextShardStats:
    """Write `STEM.text.npy`, a row for each photograph of a shard; return counts and its digest."""
    folder = Folder(task.cache)
    shard = ShardWork(folder, STAGE, task.stem, task.key, TextShardStats)
    return resumable(shard, lambda: ([text_file(task.stem)], _write_rows(folder, task)))


def _write_rows(folder: Folder, task: AnnotateTask) -> TextShardStats:
    said = [captions or ("",) for captions in task.captions.values()]
    states, lengths = _encode(task.config, [text for captions in said for text in captions])

    # One row a photograph: what it lacks in captions stays zero, and is never drawn.
    rows = np.zeros(len(said), text_dtype(task.config))
    start = 0
    for row, captions in zip(rows, said, strict=True):
        stop = start + len(captions)
        row["count"] = len(captions)
        row["lengths"][: len(captions)] = lengths[start:stop]
        row["states"][: len(captions)] = states[start:stop]
        start = stop

    name = text_file(task.stem)
    with folder.writing(name) as path:
        with open(path, "wb") as file:
            np.save(file, rows, allow_pickle=False)
        digest = digest_file(path)
    num_captioned = sum(bool(captions) for captions in task.captions.values())
    return TextShardStats(num_photographs=len(rows), num_captioned=num_captioned, file=digest)


def _encode(
    config: TextAnnotationConfig, texts: list[str]
) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
    """Return the states [N, L, D] of texts and how many tokens each has [N]."""
    encode = _text_states(config.encoder, config.length)
    states = np.zeros((len(texts), config.length, TEXT_DIMS[config.encoder]), np.float16)
    lengths = np.zeros(len(texts), np.uint8)
    for start in range(0, len(texts), _BATCH):
        part = slice(start, start + _BATCH)
        found, present = encode(texts[part])
        states[part], lengths[part] = found.numpy(), present.sum(1).numpy()
    return states, lengths


@cache
def _text_states(name: TextEncoderName, length: int) -> TextStates:
    """Return a worker's text network, which is read once for all of its shards."""
    return load_text_states(name, length)


@dataclass(frozen=True)
class TextColumn:
    """`text` [N, C, L, D] with `text_lengths` [N, C] and `text_count` [N] of a cache's rows.

    Attributes:
        cache: whose rows.
        info: what was annotated.
        captions: of a photograph that are loaded, the first ones.
    """

    cache: LatentCache
    info: TextInfo
    captions: int

    @classmethod
    def open(cls, cache: LatentCache, config: TextConfig, *, held_out: bool = False) -> TextColumn:
        """Open the captions of a cache. What is held out gets each photograph's first.

        Raises:
            CacheError: it has none, or those of other latents, of another text network or length.
        """
        fix = f"rdm cache annotate --cache {cache.folder.url}"
        info = open_annotation(
            cache, INFO_PATH, TextInfo, what="captions", format_version=FORMAT_VERSION, fix=fix
        )
        stored = info.config
        for of, have, want, setting in (
            ("text network", stored.encoder, config.encoder, f"encoder={config.encoder}"),
            ("length", stored.length, config.length, f"length={config.length}"),
        ):
            require_same(
                "captions",
                of,
                have,
                want,
                where=cache.folder.describe(INFO_PATH),
                fix=f"{fix} --set {setting}",
            )
        return cls(cache, info, 1 if held_out else info.config.captions)

    def load(self, stem: str, rows: ShardRows) -> dict[str, NDArray[Any]]:
        """See Column.

        Raises:
            CacheError: the file is missing or damaged, or has another shape.
        """
        images, photograph = photographs_of_rows(self.cache, stem)
        name = text_file(stem)
        data = self.cache.read(name, self.info.files[name])

        try:
            stored = npy_rows(data, text_dtype(self.info.config), len(images))
        except ValueError as error:
            raise CacheError(
                f"the captions do not fit the cache: {error}",
                where=self.cache.folder.describe(name),
                fix=f"delete this file and run `rdm cache annotate --cache "
                f"{self.cache.folder.url}` again",
            ) from error

        # Stored once a photograph: its crops share their captions.
        found = stored[photograph[rows.rows]]
        return {
            "text": found["states"][:, : self.captions],
            "text_lengths": found["lengths"][:, : self.captions],
            "text_count": np.minimum(found["count"], self.captions),
        }


def text_file(stem: str) -> str:
    """Return the name of a shard's file."""
    return f"{stem}.text.npy"
