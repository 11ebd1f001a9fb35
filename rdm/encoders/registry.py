"""Encoders by name: `assets://encoder-lite`, `lite:DIR`, `open_clip:MODEL/PRETRAINED_OR_FILE`."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from rdm.encoders.protocol import Encoder
from rdm.errors import UsageError

DEFAULT_ENCODER = "assets://encoder-lite"
_KNOWN = f"{DEFAULT_ENCODER} (the embedded one), lite:DIR (your own heads), open_clip:MODEL/PRETRAINED_OR_FILE"


def load_encoder(name: str, *, device: str = "cpu", threads: int | None = None) -> Encoder:
    """Return an encoder; the second call for the same name and device in a process returns the same object.

    Args:
        name: `assets://encoder-lite`, `lite:DIR` or `open_clip:MODEL/PRETRAINED_OR_FILE`.
        device: a torch device.
        threads: number of CPU threads of this process's torch from now on; None leaves it alone.

    Raises:
        UsageError: no such encoder.
        MissingDependencyError: it needs a package that is not installed.
        ModelError: its weights are missing or damaged.
    """
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    return _load(name, device)


@lru_cache(maxsize=4)
def _load(name: str, device: str) -> Encoder:
    if name == DEFAULT_ENCODER or name.startswith("lite:"):
        from rdm.encoders.lite import LiteEncoder, bundled_directory

        directory = bundled_directory() if name == DEFAULT_ENCODER else Path(name.removeprefix("lite:")).expanduser()
        return LiteEncoder(directory, name=name, device=device)
    if name.startswith("open_clip:"):
        from rdm.encoders.openclip import OpenClipEncoder

        return OpenClipEncoder(name, device=device)
    raise UsageError(f"there is no encoder {name!r}", where="--encoder", fix=f"encoders: {_KNOWN}")
