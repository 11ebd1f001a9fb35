"""Encoders by name: `assets://encoder-lite`, `lite:DIR`, `open_clip:MODEL/PRETRAINED_OR_FILE`."""

from __future__ import annotations

import threading
from functools import lru_cache
from pathlib import Path

from rdm.compute.machine import has_fast_bfloat16
from rdm.encoders.protocol import Encoder, Precision
from rdm.errors import UsageError

DEFAULT_ENCODER = "assets://encoder-lite"
_loading = threading.Lock()
_KNOWN = (
    f"{DEFAULT_ENCODER} (the embedded one), lite:DIR (your own heads), "
    "open_clip:MODEL/PRETRAINED_OR_FILE"
)


def fastest_precision(name: str, device: str = "cpu") -> Precision:
    """Return the precision in which an encoder is fastest here, among those that serve it as well.

    open_clip's models are as good in bfloat16 (cosine 0.9999 to float32 for ViT-B/32). The embedded
    encoder is not (0.998), and no faster.
    """
    return "bfloat16" if name.startswith("open_clip:") and has_fast_bfloat16(device) else "float32"


def load_encoder(
    name: str, *, device: str = "cpu", threads: int | None = None, precision: Precision = "float32"
) -> Encoder:
    """Return an encoder; a second call with the same arguments returns the same object.

    Args:
        name: `assets://encoder-lite`, `lite:DIR` or `open_clip:MODEL/PRETRAINED_OR_FILE`.
        device: a torch device.
        threads: CPU threads of this process's torch from now on; None leaves them alone.
        precision: of the towers.

    Raises:
        UsageError: no such encoder, or it has only float32.
        MissingDependencyError: it needs a package that is not installed.
        ModelError: its weights are missing or damaged.
    """
    if threads is not None:
        import torch

        torch.set_num_threads(threads)

    # Threads of one worker share the encoder that the first of them loads.
    with _loading:
        return _load(name, device, precision)


@lru_cache(maxsize=4)
def _load(name: str, device: str, precision: Precision) -> Encoder:
    if name == DEFAULT_ENCODER or name.startswith("lite:"):
        from rdm.encoders.lite import LiteEncoder, bundled_directory

        if precision != "float32":
            raise UsageError(
                f"{name} is not as good in {precision}",
                where="precision",
                fix="--set precision=float32",
            )

        directory = bundled_directory()
        if name != DEFAULT_ENCODER:
            directory = Path(name.removeprefix("lite:")).expanduser()
        return LiteEncoder(directory, name=name, device=device)

    if name.startswith("open_clip:"):
        from rdm.encoders.openclip import OpenClipEncoder

        return OpenClipEncoder(name, device=device, precision=precision)
    raise UsageError(f"there is no encoder {name!r}", where="--encoder", fix=f"encoders: {_KNOWN}")
