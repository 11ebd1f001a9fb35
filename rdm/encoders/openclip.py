"""`open_clip:MODEL/PRETRAINED_OR_FILE`: any CLIP of open_clip, from its hub or a local file."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import open_clip
import torch
from PIL import Image
from torch import Tensor, nn

from rdm.encoders.chunks import encode_filled
from rdm.encoders.names import is_weights_file
from rdm.encoders.protocol import EncoderFingerprint, Precision, to_square
from rdm.errors import ModelError, UsageError

# As quick as larger ones on a processor, and a single picture is not made to wait for many.
_PROCESSOR_CHUNK = 8
_ACCELERATOR_CHUNK = 128
# Entries of OpenAI's own state dictionaries that no other exporter writes.
_OPENAI_KEYS = frozenset({"input_resolution", "context_length", "vocab_size"})


class OpenClipEncoder:
    """A model of open_clip; see `Encoder` for the methods.

    Args:
        name: `open_clip:MODEL/TAG` or `open_clip:MODEL/PATH` of a .safetensors or .pt file; pickles
            are read without executing them.
        device: a torch device.
        precision: of the towers. In bfloat16 an image's embedding has a cosine of 0.999 or more to
            that in float32, and the fingerprint is the same.

    Raises:
        UsageError: the name is malformed, the model unknown, or the activation wrong for the
            weights.
        ModelError: the weights cannot be loaded.
    """

    def __init__(self, name: str, *, device: str = "cpu", precision: Precision = "float32") -> None:
        # Weights trained with QuickGELU load without complaint into a GELU network, and embed
        # wrongly.
        model_name, weights = _parse(name)
        has_quick_gelu = _model_config(model_name).get("quick_gelu", False)
        if _needs_quick_gelu(model_name, weights) and not has_quick_gelu:
            raise UsageError(
                "these weights were trained with QuickGELU, which the model name does not say",
                where=name,
                fix=f"write open_clip:{model_name}-quickgelu/{weights}",
            )

        try:
            model = open_clip.create_model(model_name, pretrained=weights, device=device)
        except Exception as error:
            raise ModelError(
                f"open_clip cannot load {model_name}: {error}",
                where=weights,
                fix="name a tag of open_clip.list_pretrained(), or a .safetensors or .pt file",
            ) from error

        self._model: Any = model.requires_grad_(False).eval()
        self._tokenizer: Any = open_clip.get_tokenizer(model_name)
        self._device = device
        self._chunk = _PROCESSOR_CHUNK if device == "cpu" else _ACCELERATOR_CHUNK
        self._fingerprint = _fingerprint(name, model_name, self._model)

        # In bfloat16 a second network takes the weights: open_clip keeps its norms in float32.
        self._dtype = torch.float32
        if precision == "bfloat16":
            self._dtype = torch.bfloat16
            state = self._model.state_dict()
            lowered = cast(Any, open_clip.create_model(model_name, precision="bf16", device=device))
            lowered.load_state_dict(state)
            self._model = lowered.requires_grad_(False).eval()

        self._mean, self._std = (
            torch.tensor(values, device=device).view(1, 3, 1, 1)
            for values in (self._fingerprint.mean, self._fingerprint.std)
        )

    @property
    def fingerprint(self) -> EncoderFingerprint:
        """See Encoder."""
        return self._fingerprint

    @property
    def embedding_dim(self) -> int:
        """See Encoder."""
        return self._fingerprint.embedding_dim

    def preprocess(self, image: Image.Image) -> np.ndarray:
        """See Encoder."""
        return to_square(image, self._fingerprint)

    @torch.inference_mode()
    def encode_images(self, batch: Tensor | np.ndarray) -> np.ndarray:
        """See Encoder. A picture's embedding is the same, to the bit, in any batch."""

        def encode(chunk: Tensor) -> Tensor:
            pixels = (chunk.to(self._device).float() / 255 - self._mean) / self._std
            return self._model.encode_image(pixels.to(self._dtype))

        return encode_filled(encode, torch.as_tensor(batch), self._chunk, self.embedding_dim)

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """See Encoder. A text longer than the model's context is cut."""
        if not texts:
            return np.zeros((0, self.embedding_dim), np.float32)
        tokens = self._tokenizer(list(texts)).to(self._device)
        return encode_filled(self._model.encode_text, tokens, self._chunk, self.embedding_dim)


def _parse(name: str) -> tuple[str, str]:
    """Split a name into model and weights; raise where there are none."""
    model_name, _, weights = name.removeprefix("open_clip:").partition("/")
    if not weights:
        raise UsageError(
            f"{name!r} names no weights",
            where="--encoder",
            fix="write open_clip:MODEL/TAG or open_clip:MODEL//path/to/file.safetensors",
        )

    # A path or a tag: a path must exist.
    looks_like_file = is_weights_file(weights)
    if looks_like_file and not Path(weights).expanduser().is_file():
        raise UsageError(
            "the checkpoint does not exist",
            where=weights,
            fix="check the path; an absolute one follows the model name as //path",
        )
    return model_name, str(Path(weights).expanduser()) if looks_like_file else weights


def _model_config(model_name: str) -> dict[str, Any]:
    """Return open_clip's configuration of a model; raise for an unknown one."""
    config = open_clip.get_model_config(model_name)
    if config is None:
        raise UsageError(
            f"open_clip has no model {model_name!r}",
            where="--encoder",
            fix="`python -c 'import open_clip; print(open_clip.list_models())'` lists them",
        )
    return config


def _needs_quick_gelu(model_name: str, weights: str) -> bool:
    """Return whether weights were trained with QuickGELU: OpenAI's, and tags that say so."""
    _model_config(model_name)  # an unknown model is reported before its weights are looked at
    path = Path(weights)
    if path.is_file():
        return _is_openai_file(path) or "openai" in path.name.lower()
    return bool(open_clip.get_pretrained_cfg(model_name, weights).get("quick_gelu", False))


def _is_openai_file(path: Path) -> bool:
    """Return whether a file holds OpenAI's own state; raise if it cannot be read safely."""
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                return not _OPENAI_KEYS.isdisjoint(file.keys())
        except SafetensorError as error:
            raise ModelError(
                f"the checkpoint is damaged: {error}", where=path, fix="fetch it again"
            ) from error

    # TorchScript is a program, not only weights.
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any("/code/" in entry for entry in archive.namelist()):
                raise ModelError(
                    "the checkpoint is TorchScript, which would run code when opened",
                    where=path,
                    fix="save its state_dict() as safetensors and name that file",
                )

    try:
        loaded = torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:
        raise ModelError(
            f"the checkpoint cannot be read safely: {error}",
            where=path,
            fix="save its state_dict() as safetensors and name that file",
        ) from error

    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else {}
    return not _OPENAI_KEYS.isdisjoint(state)


def _fingerprint(name: str, model_name: str, model: Any) -> EncoderFingerprint:
    """Return the fingerprint of a loaded model."""
    config = _model_config(model_name)
    preprocess = model.visual.preprocess_cfg
    size = preprocess["size"]
    interpolation = preprocess.get("interpolation", "bicubic")

    return EncoderFingerprint(
        name=name,
        architecture=model_name.removesuffix("-quickgelu"),
        weights_digest=state_digest(model),
        activation="quickgelu" if config.get("quick_gelu") else "gelu",
        image_size=size if isinstance(size, int) else size[0],
        interpolation="bilinear" if interpolation == "bilinear" else "bicubic",
        crop="squash" if preprocess.get("resize_mode") == "squash" else "center",
        mean=tuple(preprocess["mean"]),
        std=tuple(preprocess["std"]),
        pooling="model",
        embedding_dim=int(config["embed_dim"]),
    )


def state_digest(module: nn.Module) -> str:
    """Return 16 hexadecimal digits of a SHA-256 over a module's state, with names and shapes."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        array = cast(Tensor, value).detach().cpu().contiguous()
        digest.update(f"{key} {array.dtype} {tuple(array.shape)}\n".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
