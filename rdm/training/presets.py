"""Query sets and caches that belong together: equal crops for neighbors and latents."""

from __future__ import annotations

from rdm.database import NeighborConfig
from rdm.sources import CropConfig, QuerySetConfig
from rdm.training.data.latent_cache import CacheConfig


def query_config(source: str) -> QuerySetConfig:
    """Return how a source is cut into query crops: three large ones of a `samples://` photograph,
    else its centre square.
    """
    if source.startswith("samples://"):
        crop = CropConfig(frame_size=120, patch_size=96, min_patches=3, max_patches=3, seed=1)
        return QuerySetConfig(source=source, crop=crop, images_per_shard=128)
    return QuerySetConfig(
        source=source, crop=CropConfig(mode="grid", frame_size=256, patch_size=256)
    )


def neighbor_config(source: str) -> NeighborConfig:
    """Return the neighbor table's configuration for a source."""
    return NeighborConfig(queries=query_config(source))


def cache_config(source: str, autoencoder: str = "assets://autoencoder-kl-f4") -> CacheConfig:
    """Return the latent cache's configuration for a source; the autoencoder `none` is for
    pixels."""
    return CacheConfig(
        queries=query_config(source), autoencoder=None if autoencoder == "none" else autoencoder
    )
