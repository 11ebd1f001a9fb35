"""What the tests of the data layers share: pictures made on the spot, and a real encoder that is
tiny."""

from __future__ import annotations

import atexit
import ctypes
import gc
import io
import json
import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

# no deadline: shared machines stall at times
settings.register_profile("rdm", deadline=None, max_examples=50)
settings.load_profile("rdm")

_CAPABILITY_VERSION_3, _CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 0x20080522, 1 << 1, 1 << 2
TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def pytest_configure(config: pytest.Config) -> None:
    gc.disable()
    # autofaiss imports fire, which imports a module that Python 3.13 removes.
    config.addinivalue_line("filterwarnings", "ignore:'pipes' is deprecated:DeprecationWarning")


def pytest_collection_finish() -> None:
    """Have the garbage collector pass over the libraries, which every collection would walk."""
    gc.freeze()
    gc.enable()
    atexit.register(gc.unfreeze)  # libraries that check for leaks want all freed in the end


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    """Return a maker of smooth random pictures: `picture(seed, size=(width, height))`."""

    def make(seed: int, size: tuple[int, int] = (48, 40), mode: str = "RGB") -> Image.Image:
        coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        return Image.fromarray(coarse).resize(size, Image.Resampling.BILINEAR).convert(mode)

    return make


@pytest.fixture(scope="session")
def encoded(picture: Callable[..., Image.Image]) -> Callable[..., bytes]:
    """Return a maker of encoded pictures: `encoded(seed, "PNG", size=(48, 40))`."""

    def make(seed: int, kind: str = "JPEG", **options: object) -> bytes:
        buffer = io.BytesIO()
        picture(seed, **options).save(buffer, kind)
        return buffer.getvalue()

    return make


@pytest.fixture
def photos(tmp_path: Path, encoded: Callable[..., bytes]) -> Path:
    """A folder of twelve photographs, p00.jpg to p11.jpg."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(12):
        (folder / f"p{number:02d}.jpg").write_bytes(encoded(number))
    return folder


@pytest.fixture(scope="session")
def make_encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], str]:
    """Return a maker of encoders: a CLIP of one narrow layer, its weights random with the given
    seed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import open_clip
        import torch
        from safetensors.torch import save_file
    folder = tmp_path_factory.mktemp("encoder")
    (folder / "tiny-clip.json").write_text(json.dumps(TINY_CLIP))
    open_clip.add_model_config(folder / "tiny-clip.json")
    torch.set_num_threads(1)

    def make(seed: int) -> str:
        path = folder / f"seed{seed}.safetensors"
        if not path.exists():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                save_file(open_clip.create_model("tiny-clip").state_dict(), path)
        return f"open_clip:tiny-clip/{path}"

    return make


@pytest.fixture(scope="session")
def tiny_encoder(make_encoder: Callable[[int], str]) -> str:
    """The name of an encoder whose embeddings have 16 dimensions."""
    return make_encoder(0)


@pytest.fixture
def bound_by_permissions() -> Iterator[None]:
    """Have this thread obey the permissions of files, which root's threads pass over."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)  # 0: this thread
    held = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable, in two words of bits
    assert libc.capget(header, held) == 0
    bound = type(held)(*held)
    bound[0] &= ~(_CAP_DAC_OVERRIDE | _CAP_DAC_READ_SEARCH)
    assert libc.capset(header, bound) == 0
    try:
        yield
    finally:
        assert libc.capset(header, held) == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Return a function that mounts a filesystem of so many kilobytes, and resizes it when called
    again."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(size: int) -> Path:
        options = f"size={size}k" + (",remount" if place.is_mount() else "")
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", place],
            capture_output=True,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"mounting is not permitted here: {done.stderr.decode().strip()}")
        return place

    yield mount
    if place.is_mount():
        # maps of its files may wait for the garbage collector
        subprocess.run(["umount", "--lazy", place], check=True)
