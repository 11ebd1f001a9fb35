"""Reading a WebDataset tar of JPEGs as our ingestion does, against the bare decoder on the same
bytes in memory.

Ours lists the tar, reads each member by offset, checks its limits and turns it upright; and, a
second figure, makes the ledger's row with SHA-256 and perceptual hash. The bare decoder is
Pillow's. RDM_BENCH_TAR names the tar; without it the embedded samples are used.
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

from PIL import Image

from benchmarks.embedding import write_tar
from benchmarks.timing import paired_ratio
from rdm.sources import FetchConfig, decode_image, open_source


def run(count: int = 900) -> str:
    """Return the ratios in words, over so many photographs."""
    with tempfile.TemporaryDirectory() as directory:
        tar = Path(directory) / "00000.tar"
        write_tar(tar, count)
        source = open_source(f"webdataset://{tar}")
        rows = source.listing().to_pylist()
        data = [source.read(row["location"]) for row in rows]

        def bare() -> None:
            for encoded in data:
                Image.open(io.BytesIO(encoded)).convert("RGB")

        def read() -> None:
            for row in open_source(source.spec).listing().to_pylist():
                decode_image(source.read(row["location"]))

        def ingest() -> None:
            for _ in source.take(rows, Path(directory), FetchConfig()):
                pass

        reading, seconds, bare_seconds = paired_ratio(read, bare)
        ingesting, _, _ = paired_ratio(ingest, bare)
    speeds = (
        f"{len(data) / seconds:,.0f} against {len(data) / bare_seconds:,.0f} "
        "photographs/s, one process"
    )
    return (
        f"{reading:.0%} of the bare decoder ({speeds}); with digest and hash for the "
        f"ledger {ingesting:.0%}"
    )
