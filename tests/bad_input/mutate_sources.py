"""Give the sources damaged pictures, tars and lists. Arguments: a scratch folder; how many of each;
a seed.

A program of its own, with a limit to its memory and to the time of each case, because damage may
crash or hang what reads it. Writes every case to standard error before it is tried, and prints
counts: tried, and refused by cause.
"""

from __future__ import annotations

import io
import json
import random
import resource
import signal
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from mutations import mutate
from PIL import Image

from rdm.errors import SourceError
from rdm.sources import open_source
from rdm.sources.causes import cause_of
from rdm.sources.ingest import FAILED, SUCCESS, IngestTask, ingest_shard
from rdm.storage import Folder

MEMORY_BYTES = 6 << 30
CASE_SECONDS = 20
PICTURES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"}
Outcomes = Counter[str]


def begin(case: str) -> None:
    """Note the case that is tried, and give it its time."""
    sys.stderr.write(f"{case}\n")
    signal.alarm(CASE_SECONDS)


def picture(kind: str, rng: random.Random) -> bytes:
    """Return a noisy picture of a random size and mode."""
    pixels = np.random.default_rng(rng.randrange(2**32)).integers(
        0, 256, (rng.randint(1, 60), rng.randint(1, 60), 3)
    )
    mode = rng.choice(
        ["RGB", "L"] if kind in ("JPEG", "BMP", "WEBP") else ["RGB", "L", "P", "RGBA"]
    )
    buffer = io.BytesIO()
    image = Image.fromarray(pixels.astype(np.uint8)).convert("P" if kind == "GIF" else mode)
    image.save(buffer, kind, **({"progressive": rng.random() < 0.5} if kind == "JPEG" else {}))
    return buffer.getvalue()


def try_pictures(base: Path, count: int, seed: int) -> Outcomes:
    """Take a folder of damaged pictures in: a ledger row for each, kept or with a cause."""
    rng = random.Random(seed)
    photos = base / "photos"
    photos.mkdir()
    for number in range(count):
        kind = rng.choice(list(PICTURES))
        data, damage = mutate(picture(kind, rng), seed + number)
        (photos / f"{number:05d}-{damage}.{PICTURES[kind]}").write_bytes(data)
    listing = open_source(f"folder://{photos}").listing()
    outcomes: Outcomes = Counter()
    for start in range(0, count, 100):
        begin(f"pictures {start}")
        task = IngestTask(
            Folder(base / "db"), f"{start:05d}", f"folder://{photos}", listing.slice(start, 100)
        )
        stats = ingest_shard(task)
        ledger = task.folder.read_table(f"images/{task.stem}.parquet").to_pylist()
        assert [row["image_id"] for row in ledger] == task.listing["image_id"].to_pylist()
        assert all(
            row["status"] == SUCCESS or (row["status"] == FAILED and row["error_message"])
            for row in ledger
        )
        assert stats.count == len(ledger)
        outcomes.update(cause_of(row["error_message"]) or SUCCESS for row in ledger)
    return outcomes


def tar_of(rng: random.Random) -> bytes:
    """Return a WebDataset of three pictures."""
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer, mode="w", format=rng.choice([tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
    ) as tar:
        for number in range(3):
            for ending, data in (("png", picture("PNG", rng)), ("json", b'{"a": 1}')):
                member = tarfile.TarInfo(f"{number:04d}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def table_of(rng: random.Random) -> pa.Table:
    """Return a list of URLs with further columns."""
    count = rng.randint(1, 40)
    return pa.table(
        {
            "url": [f"http://pictures.example/{number}.jpg" for number in range(count)],
            "id": [f"p{number}" for number in range(count)],
            "author": [rng.choice(["Ann", 'B. "Bee"', "Zoë"]) for _ in range(count)],
            "license": ["https://example.org/license"] * count,
        }
    )


def parquet_of(rng: random.Random) -> bytes:
    """Return a list of URLs as Parquet."""
    buffer = io.BytesIO()
    pq.write_table(
        table_of(rng), buffer, compression=rng.choice(["zstd", "snappy", "gzip", "none"])
    )
    return buffer.getvalue()


def csv_of(rng: random.Random) -> bytes:
    """Return a list of URLs as CSV."""
    buffer = io.BytesIO()
    pyarrow.csv.write_csv(table_of(rng), buffer)
    return buffer.getvalue()


def text_of(rng: random.Random) -> bytes:
    """Return a list of URLs as text."""
    return "\n".join(table_of(rng)["url"].to_pylist()).encode()


def metadata_of(rng: random.Random) -> bytes:
    """Return the metadata of a split of Open Images."""
    header = "ImageID,Subset,OriginalURL,OriginalLandingURL,License,Author,OriginalMD5,Rotation\n"
    row = "0{0},validation,http://f.example/{0}.jpg,http://f.example/{0},https://example.org/l,Ann,md5==,90.0\n"
    return (header + "".join(row.format(number) for number in range(rng.randint(1, 20)))).encode()


def try_files(
    base: Path, name: str, spec: str, make: Callable[[random.Random], bytes], count: int, seed: int
) -> Outcomes:
    """Open damaged files of one kind as a source, and take in what they list where that is at
    hand."""
    outcomes: Outcomes = Counter()
    path = base / name
    for number in range(count):
        data, damage = mutate(make(random.Random(seed + number)), seed + number)
        path.write_bytes(data)
        begin(f"{name} {number} {damage}")
        try:
            source = open_source(spec.format(path))
            rows = source.listing().to_pylist()
        except SourceError as error:
            outcomes["refused" if error.where else "refused without a place"] += 1
            continue
        if name.endswith(".tar"):
            ledger = [row for row, _ in source.take(rows, base / "scratch", IngestTask.fetch)]
            assert [row["image_id"] for row in ledger] == [row["image_id"] for row in rows]
            assert all(row["status"] == SUCCESS or row["error_message"] for row in ledger)
            outcomes.update(cause_of(row["error_message"]) or SUCCESS for row in ledger)
        outcomes["listed"] += 1
    return outcomes


def everything(base: Path, count: int, seed: int) -> Iterator[tuple[str, Outcomes]]:
    """Yield what became of each kind of file."""
    yield "pictures", try_pictures(base, count, seed)
    for name, spec, make in (
        ("list.tar", "webdataset://{}", tar_of),
        ("list.parquet", "urls://{}", parquet_of),
        ("list.csv", "urls://{}", csv_of),
        ("list.txt", "urls://{}", text_of),
        ("images.csv", "openimages://validation?metadata={}", metadata_of),
    ):
        yield name, try_files(base, name, spec, make, count, seed)


def limit(num_bytes: int) -> None:
    """Bound the memory that this process may ask for."""
    resource.setrlimit(resource.RLIMIT_AS, (num_bytes, num_bytes))


if __name__ == "__main__":
    limit(MEMORY_BYTES)
    for kind, outcomes in everything(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])):
        sys.stdout.write(json.dumps([kind, outcomes]) + "\n")
    signal.alarm(0)
