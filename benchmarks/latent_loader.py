"""Reading a latent cache in training order against webdataset's own pipeline on the same tar."""

from __future__ import annotations

import io
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import webdataset as wds

from benchmarks.timing import paired_ratio
from rdm.training.objective import Shard
from rdm.training.order import BatchReader, DataOrder

COUNT, BATCH, SHAPE = 4000, 64, (8, 16, 16)


class _Tar:
    """The moments of one tar, read as `LatentCache` reads them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shards = [Shard("00000", COUNT)]

    def load_shard(self, index: int) -> dict[str, np.ndarray]:
        """Return the members of the tar as one array."""
        nbytes = int(np.prod(SHAPE)) * 2
        stride = 512 + -(-(nbytes + 128) // 512) * 512
        raw = np.memmap(self.path, np.uint8, "r", shape=(stride * COUNT,)).reshape(COUNT, stride)
        return {"moments": raw[:, 512 + 128 : 640 + nbytes].view(np.float16).reshape(COUNT, *SHAPE)}

    def keys(self, index: int) -> list[str]:
        """Return the names of the members."""
        return [f"{row:06d}" for row in range(COUNT)]


def run() -> str:
    """Return the ratio in words."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "00000.tar"
        _write(path)
        ratio, ours, theirs = paired_ratio(lambda: _read_ours(path), lambda: _read_webdataset(path))
    return f"{ratio:.1f}x webdataset ({COUNT / ours:,.0f} against {COUNT / theirs:,.0f} latents/s, one process)"


def _read_ours(path: Path) -> None:
    data = _Tar(path)
    order = DataOrder([COUNT], seed=0)
    reader = BatchReader(data, order)
    for start in range(0, COUNT - BATCH + 1, BATCH):
        reader.batch(np.arange(start, start + BATCH))


def _read_webdataset(path: Path) -> None:
    pipeline = wds.WebDataset(str(path), shardshuffle=False, empty_check=False).shuffle(1000).decode()
    for _ in pipeline.to_tuple("npy").batched(BATCH):
        pass


def _write(path: Path) -> None:
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(COUNT):
            buffer = io.BytesIO()
            np.save(buffer, rng.normal(size=SHAPE).astype(np.float16))
            member = tarfile.TarInfo(f"{number:06d}.npy")
            member.size = buffer.tell()
            buffer.seek(0)
            tar.addfile(member, buffer)
