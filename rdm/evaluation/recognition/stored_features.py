"""Arrays that a measurement computes once: features of pictures, resumable in chunks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from rdm.config import digest_json
from rdm.evaluation.metrics.fid import FEATURE_NETWORK, InceptionFeatures
from rdm.evaluation.recognition.judges import LITE2, Lite2
from rdm.progress import tracking
from rdm.storage import Folder, Markers

STAGE = "recognition"
_CHUNK = 128  # pictures between two files

NetworkName = Literal["lite2", "inception"]
NETWORKS: dict[NetworkName, str] = {"lite2": LITE2, "inception": FEATURE_NETWORK}


@dataclass(frozen=True)
class StoredArrays:
    """Arrays in a folder, each beside a marker that says from what it was computed."""

    folder: Folder

    def once(self, name: str, key: str, compute: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """Return the array of a name, computed where it is missing or has another key."""
        path, markers = f"arrays/{name}.npy", Markers(self.folder, STAGE)
        if markers.find(name, key) is None:
            self.folder.write_array(path, compute())
            markers.write(name, key, [path], {})
        return self.folder.read_array(path)

    def has(self, name: str, key: str) -> bool:
        """Return whether an array stands."""
        return Markers(self.folder, STAGE).find(name, key) is not None


@dataclass(frozen=True)
class FeatureStore:
    """Features of sets of pictures by the judges' networks.

    A network is opened when the first picture needs it, so that a finished measurement opens none.
    """

    arrays: StoredArrays
    device: torch.device
    _opened: dict[NetworkName, Callable[..., NDArray[Any]]] = field(default_factory=dict)

    def features(
        self, network: NetworkName, name: str, key: str, pictures: NDArray[np.uint8]
    ) -> NDArray[Any]:
        """Return a network's features [N, D] of pictures.

        Args:
            network: which one.
            name: of the set of pictures.
            key: changes when the set does.
            pictures: uint8 [N, H, W, 3].
        """
        parts = []
        with tracking(f"{network} {name}", len(pictures), "pictures") as tracker:
            for start in range(0, len(pictures), _CHUNK):
                chunk = pictures[start : start + _CHUNK]
                place = f"{network}-{name}-{start:06d}"
                # `NETWORKS` tells network and version: another one computes anew.
                own = digest_json([NETWORKS[network], key, len(chunk)])
                # The network is opened inside, so that a chunk that stands never loads it.
                compute = lambda chunk=chunk: self._network(network)(chunk)  # noqa: E731
                parts.append(self.arrays.once(place, own, compute))
                tracker.advance(len(chunk))
        return np.concatenate(parts)

    def _network(self, name: NetworkName) -> Callable[..., NDArray[Any]]:
        if name not in self._opened:
            kind = {"lite2": Lite2, "inception": InceptionFeatures}[name]
            self._opened[name] = kind(self.device)
        return self._opened[name]
