"""Names of encoders that hold a file or folder: `lite:DIR` and `open_clip:MODEL/FILE`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from rdm.storage.files import absolute_path


def absolute_encoder(name: str) -> str:
    """Return an encoder's name that opens in every working directory, with an absolute path."""
    kind, _, rest = name.partition(":")
    if kind == "lite" and rest:
        return f"lite:{absolute_path(rest)}"
    model, _, weights = rest.partition("/")
    if kind == "open_clip" and is_weights_file(weights):
        return f"open_clip:{model}/{absolute_path(weights)}"
    return name


def weights_path(name: str) -> str | None:
    """Return the file or folder in an encoder's name, or None."""
    kind, _, rest = absolute_encoder(name).partition(":")
    if kind == "lite":
        return rest
    weights = rest.partition("/")[2]
    return weights if kind == "open_clip" and is_weights_file(weights) else None


def is_weights_file(weights: str) -> bool:
    """Return whether the weights in an open_clip name are a file, not one of its tags."""
    return "/" in weights or Path(weights).suffix in (".pt", ".pth", ".bin", ".safetensors")


EncoderName = Annotated[str, AfterValidator(absolute_encoder)]
"""A setting that names an encoder."""
