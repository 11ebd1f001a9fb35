"""The store of jobs and pictures: SQLite and PNG files in one folder; it outlives the process."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from rdm.errors import StorageError
from rdm.serving.jobs.records import Job, JobView, StoredImage
from rdm.storage.locks import lock_file

_SCHEMA = """
create table if not exists jobs (
  id text primary key, client text not null, key text, digest text not null, state text not null,
  created real not null, ended real, request text not null, view text);
create unique index if not exists jobs_key on jobs (client, key) where key is not null;
create index if not exists jobs_state on jobs (state);
create table if not exists images (
  id text primary key, job text not null, place integer not null, created real not null,
  draft integer not null, bytes integer not null, row text not null, unique (job, place));
create index if not exists images_created on images (draft, created, id);
"""
_DRAFT_SECONDS = 3600.0


class JobStore:
    """Jobs and pictures below a folder; one process at a time.

    Raises:
        ConcurrentWriterError: another server has the folder.
        StorageError: it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            (folder / "images").mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StorageError(
                f"the server's folder cannot be made: {error}", where=folder, fix="give --data DIR"
            ) from error

        # One server a folder: two would take up each other's jobs.
        self._file_lock = lock_file(folder / ".lock", "is serving from this folder")

        self._lock = threading.RLock()
        self._connection = sqlite3.connect(
            folder / "jobs.sqlite", check_same_thread=False, isolation_level=None
        )
        # Readers do not wait for writers; a power cut may lose the last jobs, not the file.
        self._connection.execute("pragma journal_mode=wal")
        self._connection.execute("pragma synchronous=normal")
        self._connection.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the database and let another process have the folder."""
        with self._lock:
            self._connection.close()
        self._file_lock.close()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                with self._connection:
                    yield self._connection
            except sqlite3.OperationalError as error:
                raise StorageError(
                    f"a job cannot be stored: {error}", where=self.folder, fix="check the disk"
                ) from error

    def add_job(self, job: Job, key: str | None) -> None:
        """Store a new job."""
        with self._writing() as connection:
            connection.execute(
                "insert into jobs (id, client, key, digest, state, created, request) "
                "values (?, ?, ?, ?, ?, ?, ?)",
                (
                    job.id,
                    job.client,
                    key,
                    job.request.digest(),
                    job.state,
                    job.created,
                    job.request.model_dump_json(),
                ),
            )

    def by_key(self, client: str, key: str) -> tuple[str, str] | None:
        """Return the id and the request's digest of the job that a client gave a key to."""
        with self._lock:
            return self._connection.execute(
                "select id, digest from jobs where client = ? and key = ?", (client, key)
            ).fetchone()

    def end_job(self, view: JobView) -> None:
        """Store the last state of a job."""
        with self._writing() as connection:
            connection.execute(
                "update jobs set state = ?, ended = ?, view = ? where id = ?",
                (view.state, time.time(), view.model_dump_json(), view.id),
            )

    def ended(self, job_id: str) -> JobView | None:
        """Return a job that has ended."""
        with self._lock:
            found = self._connection.execute(
                "select view from jobs where id = ? and view is not null", (job_id,)
            ).fetchone()
        return None if found is None else JobView.model_validate_json(found[0])

    def unfinished(self) -> list[tuple[str, str, str, float]]:
        """Return id, client, request and time of the jobs that an ended process left."""
        with self._lock:
            return self._connection.execute(
                "select id, client, request, created from jobs where view is null order by created"
            ).fetchall()

    def path(self, image_id: str) -> Path:
        """Return where a picture's PNG lies."""
        return self.folder / "images" / f"{image_id}.png"

    def add_image(self, image: StoredImage, png: bytes) -> None:
        """Store a picture: its file first."""
        # Renamed when it is whole: a crash leaves no half of a picture under its name.
        path = self.path(image.id)
        temporary = path.with_suffix(".tmp")
        try:
            temporary.write_bytes(png)
            temporary.replace(path)
        except OSError as error:
            raise StorageError(
                f"a picture cannot be stored: {error}", where=self.folder, fix="check the disk"
            ) from error

        # A row only of a file that is there.
        with self._writing() as connection:
            connection.execute(
                "insert into images (id, job, place, created, draft, bytes, row) "
                "values (?, ?, ?, ?, ?, ?, ?)",
                (
                    image.id,
                    image.job,
                    image.index,
                    image.created,
                    int(image.is_draft),
                    len(png),
                    image.model_dump_json(),
                ),
            )

    def image(self, image_id: str) -> StoredImage | None:
        """Return a picture's row."""
        with self._lock:
            found = self._connection.execute(
                "select row from images where id = ?", (image_id,)
            ).fetchone()
        return None if found is None else StoredImage.model_validate_json(found[0])

    def images_of(self, job_id: str) -> list[StoredImage]:
        """Return the pictures of a job, by index."""
        with self._lock:
            rows = self._connection.execute(
                "select row from images where job = ?", (job_id,)
            ).fetchall()
        images = [StoredImage.model_validate_json(row) for (row,) in rows]
        return sorted(images, key=lambda image: image.index)

    def history(self, before: str | None, count: int) -> list[StoredImage]:
        """Return pictures that are no drafts, newest first, those before an id."""
        condition = "and id < ?" if before else ""
        parameters: Sequence[object] = (before, count) if before else (count,)
        with self._lock:
            rows = self._connection.execute(
                f"select row from images where draft = 0 {condition} order by id desc limit ?",
                parameters,
            ).fetchall()
        return [StoredImage.model_validate_json(row) for (row,) in rows]

    def delete_image(self, image_id: str) -> bool:
        """Delete a picture and return whether there was one."""
        with self._writing() as connection:
            count = connection.execute("delete from images where id = ?", (image_id,)).rowcount
        with suppress(FileNotFoundError):
            self.path(image_id).unlink()
        return count > 0

    def sweep(self, keep_seconds: float, keep_bytes: int) -> int:
        """Delete what is too old or too much, drafts after an hour, and return how many pictures
        that were."""
        now = time.time()

        # Too old, or beyond what may be kept; the newest stay.
        with self._lock:
            old = self._connection.execute(
                "select id from images where created < ? or (draft = 1 and created < ?)",
                (now - keep_seconds, now - _DRAFT_SECONDS),
            ).fetchall()
            over = self._connection.execute(
                "select id from (select id, sum(bytes) over (order by id desc) as total "
                "from images) where total > ?",
                (keep_bytes,),
            ).fetchall()

        doomed = {image_id for (image_id,) in [*old, *over]}
        for image_id in doomed:
            self.delete_image(image_id)

        with self._writing() as connection:
            connection.execute("delete from jobs where ended < ?", (now - keep_seconds,))
        return len(doomed)
