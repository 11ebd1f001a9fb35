"""Map a function over shards on Dask: the only folder that imports dask."""

from rdm.compute.pool import (
    ComputeConfig,
    ShardFailure,
    close_warm_clusters,
    compute_pool,
    count_workers,
    warm_clusters,
)

__all__ = [
    "ComputeConfig",
    "ShardFailure",
    "close_warm_clusters",
    "compute_pool",
    "count_workers",
    "warm_clusters",
]
