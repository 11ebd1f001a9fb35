"""Map a function over shards on Dask: the only folder that imports dask."""

from rdm.compute.clusters import Clusters, compute_pool, count_workers
from rdm.compute.pool import ComputeConfig, ShardFailure

__all__ = ["Clusters", "ComputeConfig", "ShardFailure", "compute_pool", "count_workers"]
