"""Map a function over shards on Dask: the only folder that imports dask."""

from rdm.compute.pool import Clusters, ComputeConfig, ShardFailure, compute_pool, count_workers

__all__ = ["Clusters", "ComputeConfig", "ShardFailure", "compute_pool", "count_workers"]
