"""Names of encoders that hold a file or folder: `lite:DIR` and `open_clip:MODEL/FILE`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from rdm.storage.files import absolute_path


def absolute_encoder(name: str) -> str:
    """Return an encoder's name as it opens in every working directory: with the absolute path of
    its file or folder."""
    kind, _, rest = name.partition(":")
    if kind == "lite" and rest:
        return f"lite:{absolute_path(rest)}"
    model, _, weights = rest.partition("/")
    if kind == "open_clip" and is_weights_file(weights):
        return f"open_clip:{model}/{absolute_path(weights)}"
    return name


def weights_path(name: str) -> str | None:
    """Return the file or folder that an encoder's name holds, or None where it holds none."""
    kind, _, rest = absolute_encoder(name).partition(":")
    if kind == "lite":
        return rest
    weights = rest.partition("/")[2]
    return weights if kind == "open_clip" and is_weights_file(weights) else None


def is_weights_file(weights: str) -> bool:
    """Return whether what follows open_clip's model in a name is a file, not one of open_clip's
    tags."""
    return "/" in weights or Path(weights).suffix in (".pt", ".pth", ".bin", ".safetensors")


EncoderName = Annotated[str, AfterValidator(absolute_encoder)]
"""A setting that names an encoder."""
