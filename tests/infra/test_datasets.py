"""`datasets`, in an environment of its own, reads an export: pixels, vectors and facts, under their
types."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rdm.compute import ComputeConfig
from rdm.database import BuildConfig, DatabaseBuilder, RetrievalDatabase
from rdm.database.building.jobs import run_build
from rdm.database.exchange.export_database import export_database
from rdm.sources import CropConfig

READ = """
import hashlib, json, sys
import numpy as np
from datasets import load_dataset

rows = load_dataset("parquet", data_dir=sys.argv[1], split="train")
digest = lambda data: hashlib.sha256(data).hexdigest()
result = {
    "kinds": {
        name: str(rows.features[name]) for name in ("image", "embedding", "patch_id", "norm")
    },
    "patch_id": list(rows["patch_id"]),
    "image_id": list(rows["image_id"]),
    "pixels": [digest(row["image"].convert("RGB").tobytes()) for row in rows],
    "vectors": [digest(np.array(row["embedding"], np.float16).tobytes()) for row in rows],
}
print(json.dumps(result))
"""


@pytest.mark.slow
@pytest.mark.long
def test_datasets_reads_what_was_exported(
    locked_python: Callable[[str], Path], photos: Path, tmp_path: Path, tiny_encoder: str
) -> None:
    crop = CropConfig(frame_size=40, patch_size=24)
    config = BuildConfig(
        source=f"folder://{photos}", encoder=tiny_encoder, images_per_shard=5, crop=crop
    )
    run_build(DatabaseBuilder(str(tmp_path / "db"), config), ComputeConfig(dask="inline"))
    database = RetrievalDatabase.open(str(tmp_path / "db"))
    export_database(database, "datasets", str(tmp_path / "out"))
    done = subprocess.run(
        [locked_python("datasets"), "-c", READ, tmp_path / "out"],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": "",
        },
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    ids = database.living_ids()
    assert found["patch_id"] == ids.tolist()
    assert found["image_id"] == [record.image_id for record in database.records(ids)]
    assert found["pixels"] == [
        hashlib.sha256(image.tobytes()).hexdigest() for image in database.pixels(ids)
    ]
    vectors = database.embeddings(ids)
    assert vectors.dtype == np.float16
    assert found["vectors"] == [hashlib.sha256(vector.tobytes()).hexdigest() for vector in vectors]
    assert found["kinds"]["image"].startswith("Image")
    assert "float16" in found["kinds"]["embedding"]
    assert "int64" in found["kinds"]["patch_id"]
