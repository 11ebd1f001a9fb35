"""Latent cache: crops of a query set as first-stage latents, in tars of members of one size.

A member is a `.npy` with what the cache's `content` says. All members of a tar have the same size,
so row r lies at r times a constant stride, and a whole shard is one memory map, or one request to
an object store. `STEM.parquet` beside it says what each row is, and `cache.json` the size and
digest of every file.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydantic import Field

from rdm.compute.device import DeviceName, worker_device
from rdm.compute.pool import Pool
from rdm.config import Config, Record, digest_json
from rdm.errors import CacheError, StorageError
from rdm.models.assets import absolute_name
from rdm.models.first_stage.first_stage import FirstStage, load_autoencoder
from rdm.models.first_stage.first_stage_folder import first_stage_folder, latents_digest
from rdm.models.first_stage.plain_encoder import PlainEncoder, open_plain_encoder
from rdm.sources import QuerySet, QuerySetConfig
from rdm.sources.causes import is_passing
from rdm.sources.workers import require_visible
from rdm.storage import Folder, ShardWork, resumable
from rdm.storage.verified import FileDigest, digest_file, read_verified
from rdm.training.data.latent_tar import tar_rows, write_tar

FORMAT = "latent-cache"
FORMAT_VERSION = 3
CONFIG_PATH = "cache.json"
STAGE = "cache"
_FACTS = {
    "resolution": "resolution",
    "flips": "setting of flips",
    "queries_digest": "query set",
    "latents_digest": "first stage",
    "content": "content",
}

Content = Literal["moments", "latents", "indices", "pixels"]


class CacheConfig(Config):
    """What a latent cache holds."""

    queries: QuerySetConfig
    autoencoder: str | None = Field(
        default="assets://autoencoder-kl-f4",
        description="first stage: an asset or a diffusers folder; None: the pictures themselves",
    )
    resolution: int = Field(
        default=64, ge=8, description="side to which each crop is resized, in pixels"
    )
    flips: bool = Field(default=True, description="store every crop's mirror image too")
    content: Content | None = Field(
        default=None,
        description="moments: mean above log-variance of a KL posterior, float16 [2C, H, W]; "
        "latents: of a VQ "
        "autoencoder before its codebook, float16 [C, H, W]; indices: its codebook rows, "
        "int32 [H, W]; pixels: "
        "without an autoencoder, uint8 [3, H, W]; None: moments, latents or pixels, by the "
        "autoencoder",
    )
    batch_size: int = Field(default=64, ge=1, description="crops encoded at once")


@dataclass(frozen=True)
class CacheTask:
    """One shard to encode."""

    folder: Folder
    stem: str
    config: CacheConfig
    key: str
    device: DeviceName = "auto"


class CacheStats(Record):
    """What was encoded of a shard: its latents, why photographs were not usable, and its files."""

    num_latents: int
    failures: list[tuple[str, str]]
    files: dict[str, FileDigest]


class CacheIdentity(Record):
    """What decides the latents: neither the place of the first stage nor the number of crops
    encoded at once."""

    resolution: int
    flips: bool
    queries_digest: str
    latents_digest: str | None
    """Of the first stage's encoder; None where the cache holds pictures."""
    content: Content

    def differences(self, other: CacheIdentity) -> list[str]:
        """Return the names, in words, of the facts in which another cache differs."""
        mine, others = self.to_json(), other.to_json()
        return [words for name, words in _FACTS.items() if mine[name] != others[name]]


class CacheInfo(Record):
    """`cache.json`: what a finished cache holds, and the size and digest of every file."""

    format: str
    format_version: int
    config: CacheConfig
    queries_digest: str
    latents_digest: str | None
    content: Content
    identity: CacheIdentity
    stems: list[str]
    """Of the shards, in order."""
    num_latents: int
    counts: list[int]
    """Latents of each shard."""
    failures: list[tuple[str, str]]
    """(image_id, "cause: detail") of every photograph that was not usable."""
    files: dict[str, FileDigest]


def cache_shard(task: CacheTask) -> CacheStats:
    """Encode the crops of one query shard; return counts, and why photographs were not usable.

    A finished shard is not done again, unless a photograph that could not be read can be now.
    """
    shard = ShardWork(task.folder, STAGE, task.stem, task.key, CacheStats)
    return resumable(
        shard, lambda: _encode_shard(task), redo=lambda stats: _readable_now(task, stats.failures)
    )


def _encode_shard(task: CacheTask) -> tuple[list[str], CacheStats]:
    """Write the tar of a shard's latents and the table of its rows; return paths and counts."""
    rows: list[dict[str, Any]] = []
    failures: list[tuple[str, str]] = []
    tar, table = f"{task.stem}.tar", f"{task.stem}.parquet"
    with task.folder.writing(tar) as path:
        write_tar(path, task.stem, _latents(task, rows, failures))
        files = {tar: digest_file(path)}
    with task.folder.writing(table) as path:
        written = pa.Table.from_pylist(rows, schema=_ROW_SCHEMA)
        pq.write_table(written, path, compression="zstd", write_page_checksum=True)
        files[table] = digest_file(path)
    return [tar, table], CacheStats(num_latents=len(rows), failures=failures, files=files)


def _readable_now(task: CacheTask, failures: Sequence[tuple[str, str]]) -> bool:
    # One crop tells whether a photograph can be read; causes that do not pass are not tried again.
    first_crops = [f"{image_id}/0" for image_id, reason in failures if is_passing(reason)]
    return bool(first_crops and QuerySet(task.config.queries).picked(first_crops))


_ROW_SCHEMA = pa.schema([("key", pa.string()), ("image_id", pa.string()), ("flipped", pa.bool_())])


def _latents(
    task: CacheTask, rows: list[dict[str, Any]], failures: list[tuple[str, str]]
) -> Iterator[NDArray[Any]]:
    """Yield a shard's latents; append their rows, and the photographs that failed with causes."""
    config = task.config
    content = content_of(config)
    first_stage = None
    if config.autoencoder is not None:
        first_stage = _open_encoder(config.autoencoder, content).to(worker_device(task.device))

    # Encode a batch of crops at a time; a mirror image follows its crop.
    crops = QuerySet(config.queries).crops(task.stem, failures)
    while batch := list(itertools.islice(crops, config.batch_size)):
        views = [
            (crop, flipped)
            for crop in batch
            for flipped in ((False, True) if config.flips else (False,))
        ]
        pixels = np.stack(
            [_pixels(crop.image, flipped, config.resolution) for crop, flipped in views]
        )
        rows += [
            {"key": crop.key, "image_id": crop.image_id, "flipped": flipped}
            for crop, flipped in views
        ]
        yield from pixels if first_stage is None else _encode(first_stage, pixels, content)


def build_cache(out: str, config: CacheConfig, pool: Pool) -> CacheInfo:
    """Encode a query set into a folder and describe it in `cache.json`. A rerun resumes.

    Raises:
        CacheError: the folder holds another cache.
    """
    folder = Folder(out)
    queries = QuerySet(config.queries)
    name = config.autoencoder and absolute_name(config.autoencoder)
    config = config.model_copy(update={"autoencoder": name})
    identity = CacheIdentity(
        resolution=config.resolution,
        flips=config.flips,
        queries_digest=queries.digest,
        latents_digest=name and latents_digest(name),
        content=content_of(config),
    )
    _require_same(folder, identity)

    # Encode the shards.
    key = digest_json([FORMAT_VERSION, identity.to_json()])
    require_visible(pool, folder, source=config.queries.source, others=(name,) if name else ())
    tasks = [CacheTask(folder, stem, config, key, pool.config.device) for stem in queries.stems]
    finished = dict(pool.map(cache_shard, tasks, stage="cache", names=queries.stems))
    stats = [finished[number] for number in range(len(tasks))]

    # Describe them.
    info = CacheInfo(
        format=FORMAT,
        format_version=FORMAT_VERSION,
        config=config,
        queries_digest=identity.queries_digest,
        latents_digest=identity.latents_digest,
        content=identity.content,
        identity=identity,
        stems=queries.stems,
        num_latents=sum(shard.num_latents for shard in stats),
        counts=[shard.num_latents for shard in stats],
        failures=[failure for shard in stats for failure in shard.failures],
        files={name: digest for shard in stats for name, digest in shard.files.items()},
    )
    folder.write_json(CONFIG_PATH, info.to_json())
    return info


def _require_same(folder: Folder, identity: CacheIdentity) -> None:
    """Raise CacheError if the folder holds a cache that something else decided."""
    if not folder.exists(CONFIG_PATH):
        return
    found = LatentCache(folder.url).info.identity
    if differing := identity.differences(found):
        raise CacheError(
            f"the folder holds latents of another {' and another '.join(differing)}",
            where=folder.url,
            fix="give --out a new folder, or delete this one",
        )


class LatentCache:
    """Reads a finished latent cache, on a local disk or at any fsspec URL.

    Every file is fetched whole, by one request, and compared with its size and digest.

    Raises:
        CacheError: there is none, or one of another format.
    """

    def __init__(self, url: str) -> None:
        self.folder = Folder(url)
        if not self.folder.exists(CONFIG_PATH):
            raise CacheError(
                "there is no finished latent cache here",
                where=url,
                fix="rdm cache build --queries SPEC --out DIR",
            )

        # The format comes first: another one may have other fields.
        values = self.folder.read_json(CONFIG_PATH)
        if (found := values.get("format_version")) != FORMAT_VERSION:
            raise CacheError(
                f"the latent cache has format {found}, this release reads format {FORMAT_VERSION}",
                where=url,
                fix="delete the folder, and run `rdm cache build` again",
            )
        self.info = CacheInfo.model_validate(values)
        self.config = self.info.config
        self.stems = self.info.stems

    @property
    def content(self) -> Content:
        """What the members are, see `CacheConfig.content`."""
        return self.info.content

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits of query set, first stage, and how it was applied."""
        return digest_json(self.info.identity.to_json())

    @cached_property
    def counts(self) -> dict[str, int]:
        """How many latents each shard has."""
        return dict(zip(self.stems, self.info.counts, strict=True))

    def rows(self, stem: str) -> pa.Table:
        """Return key, image_id and flipped of each latent of a shard.

        Raises:
            CacheError: the table is missing or damaged.
        """
        # Verified like the latents: a row too many or too few would shift every condition silently.
        data = self.read(f"{stem}.parquet", self.info.files[f"{stem}.parquet"])
        return pq.read_table(pa.BufferReader(data))

    def photographs(self, stem: str) -> list[str]:
        """Return the photographs of a shard, each once, in the order of its latents."""
        return list(dict.fromkeys(self.rows(stem).column("image_id").to_pylist()))

    def latents(self, stem: str) -> NDArray[Any]:
        """Return the members of a shard [N, ...]: shape and type follow from the content. Local
        ones are memory-mapped.

        Raises:
            CacheError: the tar is missing or damaged, or the shard has no latents.
        """
        name = f"{stem}.tar"
        try:
            return tar_rows(self.read(name, self.info.files[name]), self.counts[stem])
        except ValueError as error:
            raise self._unreadable(str(error), self.folder.describe(name)) from error

    def read(self, name: str, expected: FileDigest) -> NDArray[np.uint8]:
        """Return the bytes of a file of the cache, verified.

        Raises:
            CacheError: it is missing or damaged.
        """
        try:
            return read_verified(self.folder, name, expected)
        except StorageError as error:
            raise self._unreadable(error.what, error.where) from error

    def _unreadable(self, why: str, where: str) -> CacheError:
        return CacheError(
            f"a shard of the latent cache cannot be read: {why}",
            where=where,
            fix="delete this file where it is there, and run `rdm cache build` again: it "
            "writes what is missing",
        )


def _pixels(image: Image.Image, flipped: bool, resolution: int) -> NDArray[np.uint8]:
    resized = image.resize((resolution, resolution), Image.Resampling.LANCZOS)
    return np.asarray(ImageOps.mirror(resized) if flipped else resized, np.uint8).transpose(2, 0, 1)


def content_of(config: CacheConfig) -> Content:
    """Return what a cache of this configuration holds.

    Raises:
        ModelError: the autoencoder cannot be opened.
        CacheError: it has nothing of the kind that the configuration names.
    """
    kind = config.autoencoder and first_stage_folder(config.autoencoder)[1]
    possible: tuple[Content, ...] = {
        None: ("pixels",),
        "VQModel": ("latents", "indices"),
        "AutoencoderKL": ("moments",),
    }[kind]

    # The first kind is what recipes on latents read.
    content = config.content or possible[0]
    if content not in possible:
        raise CacheError(
            f"content={content} cannot be had "
            f"{'of this autoencoder' if kind else 'without an autoencoder'}",
            where=config.autoencoder or "--autoencoder none",
            fix=f"--set content={' or '.join(possible)}, or another --autoencoder",
        )
    return content


def _open_encoder(name: str, content: Content) -> FirstStage | PlainEncoder:
    """Open what encodes; moments are encoded without the library where the network allows it."""
    if content == "moments":
        plain = open_plain_encoder(first_stage_folder(name)[0], name)
        if plain is not None:
            return plain
    return load_autoencoder(name)


def _encode(
    first_stage: FirstStage | PlainEncoder, pixels: NDArray[np.uint8], content: Content
) -> NDArray[Any]:
    import torch

    images = torch.from_numpy(pixels)
    if content == "moments":
        return torch.cat(first_stage.encode_moments(images), dim=1).cpu().numpy().astype(np.float16)
    assert not isinstance(first_stage, PlainEncoder)  # it is opened for moments alone
    if content == "indices":
        return first_stage.encode_indices(images).cpu().numpy().astype(np.int32)
    # as the autoencoder has them: scaling is the reader's
    latents = first_stage.encode(images) / first_stage.scale + first_stage.shift
    return latents.cpu().numpy().astype(np.float16)
