"""Run every benchmark, or those named: `python -m benchmarks [NAME ...]`.

When named only: `approximate_neighbors`, `batch_bits`, `growth` and `updates`, which take long;
`throughput_table`, for accelerators; `official_unet`, which needs the official code; `starting`,
which starts clusters.
"""

from __future__ import annotations

import importlib
import sys

BENCHMARKS = (
    "embedding",
    "exact_neighbors",
    "jpeg_tars",
    "latent_loader",
    "neighbor_vectors",
    "prefetch",
    "sampler_steps",
    "token_sampling",
    "training_overhead",
    "two_ranks",
    "zero_memory",
)


def main() -> None:
    """Print one line per benchmark."""
    for name in sys.argv[1:] or BENCHMARKS:
        print(f"{name}: {importlib.import_module(f'benchmarks.{name}').run()}", flush=True)


if __name__ == "__main__":
    main()
