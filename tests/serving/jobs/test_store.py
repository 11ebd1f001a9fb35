"""The store: what it keeps over a restart, and what it deletes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs.made_jobs import made_job

from rdm.errors import ConcurrentWriterError
from rdm.serving.jobs.records import Job, JobView, StoredImage, Timings, new_id
from rdm.serving.jobs.store import JobStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    opened = JobStore(tmp_path / "data")
    yield opened
    opened.close()


def view_of(job: Job) -> JobView:
    return JobView(
        id=job.id,
        state="done",
        created=job.created,
        position=0,
        seconds_left=0,
        request=job.request,
        databases=(),
        neighbors=(),
        images=(),
        problem=None,
        timings=Timings(),
        events="",
    )


def image_of(job: Job, index: int = 0, *, is_draft: bool = False, age: float = 0) -> StoredImage:
    return StoredImage(
        id=new_id("img"),
        job=job.id,
        index=index,
        seed=index,
        created=time.time() - age,
        label="an owl",
        databases=(),
        request=job.request,
        recipe="{}",
        is_draft=is_draft,
        pixels_sha256="0",
    )


def test_ids_sort_by_their_time() -> None:
    first = new_id("img")
    time.sleep(0.003)
    assert first < new_id("img")


def test_a_job_is_unfinished_until_its_end_is_stored(store: JobStore) -> None:
    job = made_job("a")
    store.add_job(job, None)
    assert [row[0] for row in store.unfinished()] == [job.id]
    store.end_job(view_of(job))
    assert store.unfinished() == []
    assert store.ended(job.id) == view_of(job)


def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    store, job = JobStore(tmp_path), made_job("a")
    image = image_of(job)
    store.add_job(job, "key")
    store.add_image(image, b"png")
    store.close()

    again = JobStore(tmp_path)
    assert [row[0] for row in again.unfinished()] == [job.id]
    assert again.by_key("a", "key") == (job.id, job.request.digest())
    assert again.images_of(job.id) == [image]
    assert again.path(image.id).read_bytes() == b"png"
    again.close()


def test_a_key_is_of_one_client(store: JobStore) -> None:
    store.add_job(made_job("a"), "key")
    assert store.by_key("b", "key") is None
    store.add_job(made_job("b"), "key")


def test_two_servers_do_not_share_a_folder(store: JobStore) -> None:
    with pytest.raises(ConcurrentWriterError):
        JobStore(store.folder)


def test_the_history_is_newest_first_in_pages_and_without_drafts(store: JobStore) -> None:
    job = made_job("a", "0-4")
    store.add_job(job, None)
    images = []
    for index in range(5):
        images.append(image_of(job, index, is_draft=index == 2))
        store.add_image(images[-1], b"png")
        time.sleep(0.002)
    shown = [image for image in reversed(images) if not image.is_draft]
    assert store.history(None, 2) == shown[:2]
    assert store.history(shown[1].id, 10) == shown[2:]


def test_a_deleted_picture_leaves_row_and_file(store: JobStore) -> None:
    job = made_job("a")
    image = image_of(job)
    store.add_image(image, b"png")
    assert store.delete_image(image.id)
    assert store.image(image.id) is None
    assert not store.path(image.id).exists()
    assert not store.delete_image(image.id)


def test_old_pictures_and_old_drafts_are_swept(store: JobStore) -> None:
    job = made_job("a", "0-3")
    kept = image_of(job, 0, age=5000)
    store.add_image(kept, b"png")
    store.add_image(image_of(job, 1, age=5000, is_draft=True), b"png")
    store.add_image(image_of(job, 2, age=20000), b"png")
    assert store.sweep(10000, 10**9) == 2
    assert store.images_of(job.id) == [kept]


def test_the_oldest_go_where_there_are_too_many_bytes(store: JobStore) -> None:
    job = made_job("a", "0-3")
    for index in range(4):
        store.add_image(image_of(job, index), b"x" * 100)
        time.sleep(0.002)
    assert store.sweep(10000, 250) == 2
    assert [image.index for image in store.images_of(job.id)] == [2, 3]
