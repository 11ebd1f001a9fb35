"""Readers beside fifty updates: every answer is that of one version, whole, and who opened one
keeps it to the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rdm.compute import ComputeConfig
from rdm.database import RetrievalDatabase
from rdm.database.building.jobs import run_build, update_builder

NUM_UPDATES = 50
K = 5

READER = """
import json, sys
import numpy as np
from rdm.database import RetrievalDatabase
root, queries = sys.argv[1], np.load(sys.argv[2])
while True:
    try:
        database = RetrievalDatabase.open(root)
        exact = database.search_vectors(queries, 5, exact=True)[0]
        approximate = database.search_vectors(queries, 5, exact=False)[0]
        images = database.patch_rows(exact.ravel())["image_id"].to_pylist()
        answer = [database.version.number, exact.tolist(), approximate.tolist(), images]
    except Exception as error:
        answer = [type(error).__name__, str(error)]
    print(json.dumps(answer), flush=True)
"""


def answer_of(database: RetrievalDatabase, queries: np.ndarray) -> list[Any]:
    exact, approximate = (
        database.search_vectors(queries, K, exact=exact)[0] for exact in (True, False)
    )
    images = database.patch_rows(exact.ravel())["image_id"].to_pylist()
    return [database.version.number, exact.tolist(), approximate.tolist(), images]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_readers_beside_fifty_updates_always_see_exactly_one_version(
    living_root: Path, tmp_path: Path, encoded: Callable[..., bytes]
) -> None:
    pinned = RetrievalDatabase.open(str(living_root))
    queries = np.array(pinned.parts[0][1][:4])
    np.save(tmp_path / "queries.npy", queries)
    expected = {1: answer_of(pinned, queries)}
    answers_path = tmp_path / "answers.jsonl"
    with open(answers_path, "wb") as output:
        reader = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", READER, living_root, tmp_path / "queries.npy"],
            stdout=output,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    try:
        wait_for_answers(answers_path, 1)
        photos = tmp_path / "photos"
        for number in range(NUM_UPDATES):
            (photos / f"q{number:02d}.jpg").write_bytes(encoded(200 + number))
            min(photos.iterdir()).unlink()
            run_build(update_builder(str(living_root)), ComputeConfig(dask="inline"))
            assert answer_of(pinned, queries) == expected[1]
            answer = answer_of(RetrievalDatabase.open(str(living_root)), queries)
            expected[answer[0]] = answer
        wait_for_answers(answers_path, NUM_UPDATES)
    finally:
        reader.kill()
        reader.wait()
    assert len(expected) == NUM_UPDATES + 1
    answers = [json.loads(line) for line in answers_path.read_text().split("\n")[:-1]]
    wrong = [answer for answer in answers if answer != expected.get(answer[0])]
    assert not wrong, (
        f"{len(wrong)} of {len(answers)} answers are of no version, such as {wrong[0]}"
    )
    assert len({answer[0] for answer in answers}) > NUM_UPDATES / 5


def wait_for_answers(path: Path, count: int) -> None:
    while path.read_bytes().count(b"\n") < count:
        time.sleep(0.05)
