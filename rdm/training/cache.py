"""Latent cache: the crops of a query set as first-stage latents, in WebDataset tars with members of one fixed size.

A member is a `.npy` with what the cache's `content` says. All members of a tar have the same size, so row r lies at r
times a constant stride, and a whole shard is one memory map. `STEM.parquet` beside it says what each row is.
"""

from __future__ import annotations

import io
import itertools
import tarfile
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydantic import Field

from rdm.compute.shards import Pool
from rdm.config import Config, digest_json
from rdm.errors import CacheError
from rdm.models.first_stage import FirstStage, load_autoencoder
from rdm.sources import QuerySet, QuerySetConfig
from rdm.storage import Folder, Markers

CONFIG_PATH = "cache.json"
STAGE = "cache"


Content = Literal["moments", "latents", "indices"]


class CacheConfig(Config):
    """What a latent cache holds."""

    queries: QuerySetConfig
    autoencoder: str = Field(
        default="assets://autoencoder-kl-f4", description="first stage: an asset or a diffusers folder"
    )
    resolution: int = Field(default=64, ge=8, description="side to which each crop is resized, in pixels")
    flips: bool = Field(default=True, description="store every crop's mirror image too")
    content: Content | None = Field(
        default=None,
        description="moments: mean above log-variance of a KL posterior, float16 [2C, H, W]; latents: of a VQ "
        "autoencoder before its codebook, float16 [C, H, W]; indices: its codebook rows, int32 [H, W]; None: "
        "moments or latents, by the autoencoder",
    )
    batch_size: int = Field(default=64, ge=1, description="crops encoded at once")


@dataclass(frozen=True)
class CacheTask:
    """One shard to encode."""

    folder: Folder
    stem: str
    config: CacheConfig
    key: str


def cache_shard(task: CacheTask) -> dict[str, Any]:
    """Encode the crops of one query shard; return counts. A finished shard is not done again."""
    markers = Markers(task.folder, STAGE)
    if (marker := markers.find(task.stem, task.key)) is not None:
        return marker.stats
    first_stage = load_autoencoder(task.config.autoencoder)
    rows: list[dict[str, Any]] = []
    outputs = [f"{task.stem}.tar", f"{task.stem}.parquet"]
    crops = QuerySet(task.config.queries).crops(task.stem, [])
    with task.folder.writing(outputs[0]) as path, tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        while batch := list(itertools.islice(crops, task.config.batch_size)):
            views = [
                (crop, flipped) for crop in batch for flipped in ((False, True) if task.config.flips else (False,))
            ]
            pixels = np.stack([_pixels(crop.image, flipped, task.config.resolution) for crop, flipped in views])
            encoded = _encode(first_stage, pixels, content_of(task.config, first_stage))
            for (crop, flipped), values in zip(views, encoded, strict=True):
                _add_member(tar, f"{task.stem}{len(rows):06d}.npy", values)
                rows.append({"key": crop.key, "image_id": crop.image_id, "flipped": flipped})
    task.folder.write_table(outputs[1], pa.Table.from_pylist(rows, schema=_ROW_SCHEMA))
    stats = {"num_latents": len(rows)}
    markers.write(task.stem, task.key, outputs, stats)
    return stats


_ROW_SCHEMA = pa.schema([("key", pa.string()), ("image_id", pa.string()), ("flipped", pa.bool_())])


def build_cache(out: str, config: CacheConfig, pool: Pool) -> dict[str, Any]:
    """Encode a query set into a folder and describe it in `cache.json`; return that description. A rerun resumes.

    Raises:
        CacheError: the folder holds another cache.
    """
    folder = Folder(out)
    queries = QuerySet(config.queries)
    first_stage = load_autoencoder(config.autoencoder)
    identity = {
        "config": config.model_dump(mode="json"),
        "queries_digest": queries.digest,
        "autoencoder_digest": first_stage.digest,
        "content": content_of(config, first_stage),
    }
    if folder.exists(CONFIG_PATH):
        recorded = folder.read_json(CONFIG_PATH)
        if {name: recorded.get(name) for name in identity} != identity:
            raise CacheError(
                "the folder holds the latents of another query set or first stage",
                where=out,
                fix="give --out a new folder, or delete this one",
            )
    key = digest_json(identity)
    tasks = [CacheTask(folder, stem, config, key) for stem in queries.stems]
    stats = dict(pool.map(cache_shard, tasks, stage="cache", names=queries.stems))
    info = {
        **identity,
        "stems": queries.stems,
        "num_latents": sum(s["num_latents"] for s in stats.values()),
        "counts": [stats[number]["num_latents"] for number in range(len(tasks))],
    }
    folder.write_json(CONFIG_PATH, info)
    return info


class LatentCache:
    """Reads a finished latent cache."""

    def __init__(self, url: str) -> None:
        self.folder = Folder(url)
        if not self.folder.exists(CONFIG_PATH):
            raise CacheError(
                "there is no finished latent cache here", where=url, fix="rdm cache build --queries SPEC --out DIR"
            )
        self.info: dict[str, Any] = self.folder.read_json(CONFIG_PATH)
        self.config = CacheConfig.model_validate(self.info["config"])
        self.stems: list[str] = self.info["stems"]

    def rows(self, stem: str) -> pa.Table:
        """Return key, image_id and flipped of each latent of a shard."""
        return self.folder.read_table(f"{stem}.parquet")

    @property
    def content(self) -> Content:
        """What the members are, see `CacheConfig.content`."""
        return self.info.get("content", "moments")  # earlier caches held nothing else

    def latents(self, stem: str) -> NDArray[Any]:
        """Return the memory-mapped members of a shard [N, ...]: shape and type follow from the content.

        Raises:
            CacheError: the tar is damaged or its members differ in size.
        """
        path = self.folder.local(f"{stem}.tar")
        count = self.rows(stem).num_rows
        try:
            with tarfile.open(path) as tar:
                member = tar.next()
                array = np.load(io.BytesIO(tar.extractfile(member).read()), allow_pickle=False)  # type: ignore[union-attr, arg-type]
        except (tarfile.TarError, OSError, ValueError, AttributeError) as error:
            raise CacheError(
                f"the shard cannot be read: {error}", where=path, fix="run `rdm cache build` again"
            ) from error
        assert member is not None
        stride = tarfile.BLOCKSIZE + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        if path.stat().st_size < stride * count:
            raise CacheError("the shard is shorter than its table says", where=path, fix="run `rdm cache build` again")
        start = member.offset_data + member.size - array.nbytes
        raw = np.memmap(path, np.uint8, "r", shape=(stride * count,)).reshape(count, stride)
        return raw[:, start : start + array.nbytes].view(array.dtype).reshape(count, *array.shape)


def _pixels(image: Image.Image, flipped: bool, resolution: int) -> NDArray[np.uint8]:
    resized = image.resize((resolution, resolution), Image.Resampling.LANCZOS)
    return np.asarray(ImageOps.mirror(resized) if flipped else resized, np.uint8).transpose(2, 0, 1)


def content_of(config: CacheConfig, first_stage: FirstStage) -> Content:
    """Return what a cache of this configuration holds.

    Raises:
        CacheError: the autoencoder has nothing of the kind that the configuration names.
    """
    possible: tuple[Content, ...] = ("moments",) if first_stage.codebook is None else ("latents", "indices")
    content = config.content or possible[0]
    if content not in possible:
        raise CacheError(
            f"content={content} cannot be had of this autoencoder",
            where=config.autoencoder,
            fix=f"--set content={' or '.join(possible)}, or another --autoencoder",
        )
    return content


def _encode(first_stage: FirstStage, pixels: NDArray[np.uint8], content: Content) -> NDArray[Any]:
    import torch

    images = torch.from_numpy(pixels)
    if content == "indices":
        return first_stage.encode_indices(images).numpy().astype(np.int32)
    if content == "latents":
        return (first_stage.encode(images) / first_stage.scale + first_stage.shift).numpy().astype(np.float16)
    return torch.cat(first_stage.encode_moments(images), dim=1).numpy().astype(np.float16)


def _add_member(tar: tarfile.TarFile, name: str, values: NDArray[Any]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    member = tarfile.TarInfo(name)
    member.size = buffer.tell()
    buffer.seek(0)
    tar.addfile(member, buffer)
