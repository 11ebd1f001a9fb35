"""Map a function over shards on Dask: the only folder that imports dask."""

from rdm.compute.shards import ComputeConfig, ShardFailure, compute_pool, count_workers

__all__ = ["ComputeConfig", "ShardFailure", "compute_pool", "count_workers"]
