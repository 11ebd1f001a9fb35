"""Fetch the photographs of one shard: candidate after candidate, in rounds of img2dataset.

A killed run goes on where it was: finished photographs lie on the shelf, and a round that was under
way is collected first.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rdm.errors import RdmError
from rdm.sources.causes import cause_of
from rdm.sources.fetching.fetched import Shelf
from rdm.sources.fetching.img2dataset import LOG, OUTPUT, ROWS, run_img2dataset
from rdm.sources.http.client import FetchConfig
from rdm.sources.http.urls import fetchable_url
from rdm.sources.ledger import FAILED, REMOVED, SKIPPED, Row, unusable_row, usable_row
from rdm.sources.photographs.decode import ImageDecodeError
from rdm.sources.photographs.filters import TOO_LONG, TOO_SMALL
from rdm.storage.atomic import storage_errors

OPTED_OUT = "opted out"
_ROBOTS = "Use of image disallowed by X-Robots-Tag directive"  # img2dataset's words
_SHARD = "00000"
LOCK_SECONDS = 30  # a worker that was given up may still be about to end


@dataclass(frozen=True)
class Candidate:
    """One place of a photograph; `checksum` is the base64 of its MD5, or empty if not known."""

    url: str
    checksum: str = ""


def fetch_photographs(
    entries: Sequence[Row],
    candidates: Callable[[Row], Sequence[Candidate]],
    scratch: Path,
    config: FetchConfig,
    lock_seconds: float = LOCK_SECONDS,
) -> Iterator[tuple[Row, bytes]]:
    """Yield the ledger row of every listed photograph, in order, and its bytes (none if it failed).

    A photograph that failed at one candidate is tried at the next, unless its owner opted out. What
    a killed run left in `scratch` is not fetched again.

    Raises:
        RdmError: img2dataset cannot run, or another process works in the same folder.
        StorageError: the disk is full or cannot be written.
    """
    with storage_errors(scratch):
        scratch.mkdir(parents=True, exist_ok=True)
    with _alone(scratch, lock_seconds):
        fetching = _Fetching(
            entries, [tuple(candidates(entry)) for entry in entries], scratch, config
        )
        fetching.run()
        yield from map(fetching.result, range(len(entries)))


class _Fetching:
    """The rounds over one shard, each with one candidate of every photograph still missing."""

    def __init__(
        self,
        entries: Sequence[Row],
        options: Sequence[Sequence[Candidate]],
        scratch: Path,
        config: FetchConfig,
    ) -> None:
        self.entries, self.options, self.scratch, self.config = entries, options, scratch, config
        self.shelf = Shelf(scratch)

    def run(self) -> None:
        """Fetch until nothing is left to try."""
        # Take over rounds of a killed run.
        for left in sorted(self.scratch.glob("round-*")):
            self._collect(left, ended=False)
        for left in self.scratch.glob("done-*"):
            shutil.rmtree(left)

        # A round of the next candidates, until every photograph is there or has none left.
        while wanted := self._wanted():
            directory = self.scratch / f"round-{uuid.uuid4().hex[:8]}"
            with storage_errors(directory):
                directory.mkdir()
                pq.write_table(pa.Table.from_pylist(wanted), directory / ROWS)
            run_img2dataset(directory, self.config, len(wanted))
            self._collect(directory, ended=True)

    def result(self, number: int) -> tuple[Row, bytes]:
        """Return one photograph's ledger row and bytes."""
        if self.shelf.has(number):
            return self.shelf.get(number)

        # Refusals by the owner, by request or by a filter are no failures.
        message = self.shelf.message(number) or "not known to the source"
        is_skipped = cause_of(message) in (OPTED_OUT, REMOVED, TOO_SMALL, TOO_LONG)
        status = SKIPPED if is_skipped else FAILED
        return unusable_row(self.entries[number], message, status), b""

    def _wanted(self) -> list[dict[str, Any]]:
        """Return the next round: a row and URL for each photograph that has a candidate left."""
        wanted = []
        for number, options in enumerate(self.options):
            if self.shelf.has(number):
                continue

            # Candidates whose URL nothing can fetch fail here, without a round.
            while (candidate := self.shelf.next_candidate(number)) is not None:
                if candidate >= len(options):
                    break
                if (url := fetchable_url(options[candidate].url)) is not None:
                    wanted.append({"row": number, "url": url, "candidate": candidate})
                    break
                self.shelf.fail(number, candidate, "not a usable URL")

        return wanted

    def _collect(self, directory: Path, *, ended: bool) -> None:
        """Take over a round's pictures and failures; `ended`: photographs without a result failed.

        A round that was killed says nothing of those that it did not come to.
        """
        asked = _read_rows(directory)
        failures = dict(_read_failures(directory / OUTPUT))
        for number, path in _read_successes(directory / OUTPUT):
            if (message := self._keep(number, asked[number], path.read_bytes())) is not None:
                failures[number] = message

        # A round without a single result did not run: its photographs must not count as failed.
        missing = [
            number for number in asked if number not in failures and not self.shelf.has(number)
        ]
        if ended and len(missing) == len(asked):
            raise RdmError(
                "img2dataset fetched nothing and did not say why",
                where=directory / LOG,
                fix="read its log, and run the same command again",
            )

        # Every failure is of one candidate; the next round asks for the next.
        for number, candidate in asked.items():
            if number in failures:
                self._fail(number, candidate, failures[number])
            elif ended and number in missing:
                self._fail(number, candidate, "no result")

        self.shelf.save()

        # Renamed first: half deleted, the round could not be read.
        done = directory.rename(directory.with_name(f"done-{directory.name}"))
        shutil.rmtree(done)

    def _keep(self, number: int, candidate: int, data: bytes) -> str | None:
        """Put a picture on the shelf, or return why it cannot be used."""
        option = self.options[number][candidate]
        digest = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        if option.checksum and option.checksum != digest:
            return "checksum differs"

        try:
            row = usable_row(self.entries[number], data, option.url)
        except ImageDecodeError as error:
            return str(error)
        self.shelf.put(number, row, data)
        return None

    def _fail(self, number: int, candidate: int, message: str) -> None:
        """Note a failure; an owner's refusal is final, whatever other candidates there are."""
        if cause_of(message) == OPTED_OUT:
            self.shelf.settle(number, message)
        else:
            self.shelf.fail(number, candidate, message)


def _read_rows(directory: Path) -> dict[int, int]:
    """Return the requested candidate by photograph; nothing of a round killed before it began."""
    try:
        table = pq.read_table(directory / ROWS)
    except (OSError, pa.ArrowException):
        return {}
    return dict(zip(table["row"].to_pylist(), table["candidate"].to_pylist(), strict=True))


def _read_successes(output: Path) -> Iterator[tuple[int, Path]]:
    """Yield number and path of each picture; its JSON is written after it, so it is whole."""
    for path in sorted((output / _SHARD).glob("*.json")):
        try:
            yield json.loads(path.read_bytes())["row"], path.with_suffix(".jpg")
        except ValueError:  # img2dataset was killed while it wrote this
            continue


def _read_failures(output: Path) -> Iterator[tuple[int, str]]:
    """Yield number and message of each failure, once img2dataset's ledger is whole."""
    # The statistics are written last.
    if not (output / f"{_SHARD}_stats.json").exists():
        return
    for row in pq.read_table(
        output / f"{_SHARD}.parquet", columns=["row", "status", "error_message"]
    ).to_pylist():
        if row["status"] != "success":
            message = row["error_message"] or "download failed"
            yield row["row"], f"{OPTED_OUT}: X-Robots-Tag" if message == _ROBOTS else message


@contextmanager
def _alone(scratch: Path, seconds: float) -> Iterator[None]:
    """Hold the folder's lock, as a given-up worker may still be about to end."""
    deadline = time.monotonic() + seconds
    with open(scratch / ".lock", "w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise RdmError(
                        "another process fetches the same photographs",
                        where=scratch,
                        fix="wait for it, or end it",
                    ) from error
            time.sleep(0.2)

        yield
