"""Weights from others' files: safetensors, or a pickle that may hold nothing but tensors."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rdm.errors import ModelError


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Return a file's tensors by name: safetensors, or a `.ckpt` of tensors and plain data alone.

    Pickled objects of other kinds could run code when they are read, so `torch.load` gets
    `weights_only=True`.

    Raises:
        ModelError: the file does not exist, is damaged, or holds other pickled objects.
    """
    if not path.is_file():
        raise ModelError("the checkpoint does not exist", where=path, fix="check the file's name")

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Mapped into memory where the format allows it: much of a training checkpoint is not
        # needed.
        loaded = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except (
        SafetensorError,
        pickle.UnpicklingError,
        RuntimeError,
        OSError,
        EOFError,
        ValueError,
        KeyError,
    ) as error:
        raise ModelError(
            "the checkpoint cannot be read as tensors alone: "
            f"{str(error).splitlines()[0] if str(error) else error!r}",
            where=path,
            fix="where you trust it, open it in a sandbox and save its state_dict as safetensors",
        ) from error

    # Training checkpoints keep the weights under `state_dict`, beside optimizer and bookkeeping.
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(state, dict):
        raise ModelError(
            f"the file holds a {type(state).__name__}, not parameters",
            where=path,
            fix="check the file",
        )

    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ModelError("the file holds no parameters", where=path, fix="check the file")
    return tensors
