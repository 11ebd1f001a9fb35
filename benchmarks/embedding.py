"""Embedding one tar of 224 px photographs with ViT-B/32 on this machine's processors, against two
peers.

The bare forward pass: the same model in the same precision over pixels that are in memory already.
And clip-retrieval's `inference` on the same tar, where RDM_CLIP_RETRIEVAL names the program (see
infra/clip-retrieval): its speed is what its own statistics say after the model is loaded.

RDM_BENCH_TAR names a tar of photographs; without it the embedded samples are used, enlarged to 224
px. The weights are random: speed does not depend on them.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.timing import paired_ratio
from rdm.compute import ComputeConfig, compute_pool
from rdm.database import BuildConfig, DatabaseBuilder
from rdm.database.building.embed import EmbedTask, embed_part
from rdm.database.building.stages import ingest, patchify
from rdm.database.contract import patches_path
from rdm.database.pixels import iterate_patches
from rdm.encoders import fastest_precision, load_encoder
from rdm.encoders.openclip import OpenClipEncoder
from rdm.sources import CropConfig, decode_image, open_source
from rdm.storage import Folder

SIDE = 224


def run(count: int = 128, rounds: int = 3) -> str:
    """Return the ratios in words, over so many photographs."""
    with tempfile.TemporaryDirectory() as directory:
        base = Path(directory)
        encoder_name = f"open_clip:ViT-B-32/{_random_weights(base / 'vit-b-32.safetensors')}"
        tar = base / "00000.tar"
        write_tar(tar, count)
        words = _against_forward(base, tar, encoder_name, rounds)
        if program := os.environ.get("RDM_CLIP_RETRIEVAL"):
            ours = _photographs_per_second(base, tar, encoder_name)
            theirs = _clip_retrieval(program, base, tar, encoder_name)
            words += (
                f"; {ours / theirs:.1f}x clip-retrieval inference ({ours:.0f} against "
                f"{theirs:.0f} photographs/s)"
            )
        return words


def _against_forward(base: Path, tar: Path, encoder_name: str, rounds: int) -> str:
    folder, task = _prepared(base / "db", tar, encoder_name)
    encoder = load_encoder(encoder_name, precision=task.precision)
    patches = folder.read_table(patches_path(0))
    assert isinstance(encoder, OpenClipEncoder)
    pixels = torch.from_numpy(
        np.stack([encoder.preprocess(image) for image in iterate_patches(folder, patches)])
    )
    ratio, ours, bare = paired_ratio(
        lambda: _embed(task), lambda: encoder.encode_images(pixels), rounds
    )
    return (
        f"{ratio:.0%} of the bare {task.precision} forward pass "
        f"({len(pixels) / ours:.0f} against {len(pixels) / bare:.0f} photographs/s, "
        f"{torch.get_num_threads()} threads)"
    )


def _photographs_per_second(base: Path, tar: Path, encoder_name: str) -> float:
    folder, task = _prepared(base / "db", tar, encoder_name)
    _, seconds, _ = paired_ratio(lambda: _embed(task), lambda: None, 1)
    return folder.read_table(patches_path(0)).num_rows / seconds


def _embed(task: EmbedTask) -> None:
    task.folder.delete("_markers/embed")
    embed_part(task)


def _prepared(root: Path, tar: Path, encoder_name: str) -> tuple[Folder, EmbedTask]:
    """Store and cut the photographs of a tar: one patch each, the whole of its center square."""
    crop = CropConfig(mode="grid", frame_size=SIDE, patch_size=SIDE)
    config = BuildConfig(source=f"webdataset://{tar}", encoder=encoder_name, crop=crop)
    builder = DatabaseBuilder(str(root), config)
    with builder.writing() as plan, compute_pool(ComputeConfig(dask="inline")) as pool:
        patchify(ingest(plan, pool), pool)
    precision = fastest_precision(encoder_name)
    return Folder(root), EmbedTask(Folder(root), 0, encoder_name, "", config.batch_size, precision)


def _clip_retrieval(program: str, base: Path, tar: Path, encoder_name: str) -> float:
    """Return the photographs per second that clip-retrieval's statistics tell, model loading left
    out."""
    out = base / "theirs"
    model, _, weights = encoder_name.removeprefix("open_clip:").partition("/")
    options = {
        "input_dataset": tar,
        "input_format": "webdataset",
        "output_folder": out,
        "enable_text": False,
        "batch_size": 64,
        "num_prepro_workers": 1,  # with 2 it hung
        "output_partition_count": 1,
        "clip_model": f"open_clip:{model}/{weights}",
    }
    arguments = [f"--{name}={value}" for name, value in options.items()]
    subprocess.run(
        [program, "inference", *arguments], check=True, capture_output=True, timeout=1800
    )
    stats = json.loads((out / "stats" / "0.json").read_text())
    return stats["sample_count"] / stats["total_duration"]


def _random_weights(path: Path) -> Path:
    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_file(open_clip.create_model("ViT-B-32").state_dict(), path)
    return path


def write_tar(path: Path, count: int) -> None:
    """Write a tar of so many photographs."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, data in enumerate(_photographs(count)):
            member = tarfile.TarInfo(f"{number:06d}.jpg")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def _photographs(count: int) -> list[bytes]:
    if given := os.environ.get("RDM_BENCH_TAR"):
        source = open_source(f"webdataset://{given}")
        return [
            source.read(location) for location in source.listing()["location"].to_pylist()[:count]
        ]
    source = open_source("samples://openimages-birds")
    photographs = []
    for location in source.listing()["location"].to_pylist()[:count]:
        buffer = io.BytesIO()
        enlarged = decode_image(source.read(location)).resize(
            (SIDE, SIDE), Image.Resampling.BICUBIC
        )
        enlarged.save(buffer, "JPEG", quality=90)
        photographs.append(buffer.getvalue())
    return photographs
