"""The API over a live server with a tiny model: what each route answers, and what it refuses."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from live_server import Running
from PIL import Image

from rdm.database import RetrievalDatabase
from rdm.sampling.recipe.record import SampleRecord

pytestmark = pytest.mark.slow


def problem(answer: Any, status: int) -> dict[str, Any]:
    """The problem of an answer, which is one as it must be."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found = answer.json()
    assert found["status"] == status
    assert found["request_id"] == answer.headers["rdm-request-id"]
    assert found["title"]
    assert found["detail"]
    return found


def code(answer: Any, status: int) -> str:
    return problem(answer, status)["type"].rsplit("/", 1)[-1]


def test_a_job_draws_a_picture_for_each_seed(server: Running) -> None:
    job = server.submit(seeds="3-5")
    assert job["state"] == "queued"
    assert job["request"]["model"] == "tiny"
    assert job["request"]["retrieval"]["databases"][0]["name"] == "birds"
    ended = server.ended(job["id"])
    assert ended["state"] == "done"
    assert [image["seed"] for image in ended["images"]] == [3, 4, 5]
    assert len(ended["neighbors"]) == 4
    assert ended["databases"] == [{"name": "birds", "version": 1}]


def test_the_answer_leads_to_the_job(server: Running) -> None:
    answer = server.client.post("v1/jobs", json={"texts": ["x"], "settings": {"num_steps": 1}})
    where = answer.request.url.join(answer.headers["location"])
    assert server.client.get(where).json()["id"] == answer.json()["id"]
    server.ended(answer.json()["id"])


def test_a_picture_carries_its_recipe_and_the_routes_say_the_same(server: Running) -> None:
    image = server.ended(server.submit(seeds="9")["id"])["images"][0]
    data = server.client.get(image["url"]).content
    with Image.open(io.BytesIO(data)) as picture:
        picture.load()
        carried = SampleRecord.model_validate_json(picture.text["rdm"])  # type: ignore[attr-defined]
        pixels = np.asarray(picture)
    assert carried.pixels_sha256 == hashlib.sha256(pixels.tobytes()).hexdigest()
    assert carried.seed == 9
    assert SampleRecord.model_validate(server.client.get(image["recipe"]).json()) == carried
    credits = server.client.get(image["credits"]).json()
    assert [one["patch_id"] for one in credits["neighbors"]] == [
        one.patch_id for one in carried.neighbors
    ]
    text = server.client.get(image["credits"], params={"format": "text"}).text
    assert all(one.image_id in text for one in carried.neighbors)


def test_a_thumbnail_has_the_size_that_was_asked_for(server: Running) -> None:
    image = server.ended(server.submit()["id"])["images"][0]
    answer = server.client.get(image["thumb"].replace("128", "96"))
    assert Image.open(io.BytesIO(answer.content)).size == (96, 96)
    again = {"If-None-Match": answer.headers["etag"]}
    assert server.client.get(image["thumb"].replace("128", "96"), headers=again).status_code == 304


def test_the_same_request_gives_the_same_pixels_alone_and_among_strangers(server: Running) -> None:
    jobs = [server.submit(seeds="5"), *(server.submit(seeds=f"{n}") for n in (6, 7)), None]
    jobs[-1] = server.submit(seeds="5")
    ended = [server.ended(job["id"]) for job in jobs if job is not None]
    pictures = [
        np.asarray(Image.open(io.BytesIO(server.client.get(one["images"][0]["url"]).content)))
        for one in ended
    ]
    np.testing.assert_array_equal(pictures[0], pictures[-1])
    assert (pictures[0] != pictures[1]).any()


def test_neighbors_are_those_of_the_database(server: Running, database: RetrievalDatabase) -> None:
    answer = server.client.post("v1/neighbors", json={"patches": ["5"], "settings": {"k": 3}})
    found = answer.json()["neighbors"]
    vector = database.embeddings(np.array([5])).astype(np.float32)
    ids, similarities = database.search_vectors(vector, 3, exact=True)
    assert [one["patch_id"] for one in found] == ids[0].tolist()
    np.testing.assert_allclose([one["similarity"] for one in found], similarities[0], atol=1e-4)


def test_an_excluded_photograph_is_not_found(server: Running) -> None:
    ask = {"texts": ["an owl"], "settings": {"k": 4}}
    first = server.client.post("v1/neighbors", json=ask).json()["neighbors"][0]["image_id"]
    ask["retrieval"] = {"exclude": {"photographs": [first]}}
    left = server.client.post("v1/neighbors", json=ask).json()["neighbors"]
    assert len(left) == 4
    assert first not in [one["image_id"] for one in left]


def test_events_tell_the_whole_story_in_order(server: Running) -> None:
    events = server.events(server.submit(seeds="0-1")["id"])
    names = [name for _, name, _ in events if name != "image.preview"]
    assert names == [
        "job.queued",
        "job.neighbors",
        "job.started",
        "image.done",
        "image.done",
        "job.done",
    ]
    numbers = [int(event_id.rsplit(".", 1)[1]) for event_id, _, _ in events]
    assert numbers == sorted(set(numbers))


def test_a_reader_that_was_cut_off_goes_on_where_it_was(server: Running) -> None:
    job = server.submit()["id"]
    events = server.events(job)
    for place, (event_id, _, _) in enumerate(events[:-1]):
        assert server.events(job, event_id) == events[place + 1 :]


def test_a_reader_of_another_life_gets_a_snapshot(server: Running) -> None:
    job = server.submit()["id"]
    server.events(job)
    (_, first, data), (_, last, _) = server.events(job, f"{job}.otherboot.3")
    assert (first, last) == ("job.snapshot", "job.done")
    assert data["state"] == "done"


def test_a_cancelled_job_ends_within_a_step_and_no_other_with_it(server: Running) -> None:
    long = server.submit(seeds="0-3", settings={"num_steps": 200})
    other = server.submit(seeds="8")
    events = server.client.stream("GET", f"v1/jobs/{long['id']}/events")
    with events as answer:
        for line in answer.iter_lines():
            if line == "event: job.started":
                break
    cancelled = server.client.delete(f"v1/jobs/{long['id']}")
    assert cancelled.json()["state"] == "cancelled"
    assert server.client.delete(f"v1/jobs/{long['id']}").status_code == 200
    assert server.ended(other["id"], 10)["state"] == "done"
    names = [name for _, name, _ in server.events(long["id"])]
    assert names[-1] == "job.cancelled"
    assert sum(name in ("job.done", "job.failed", "job.cancelled") for name in names) == 1
    assert code(server.client.delete(f"v1/jobs/{other['id']}"), 409) == "job_ended"


def test_a_draft_takes_the_place_of_the_one_before(server: Running) -> None:
    slow = {"num_steps": 200}
    first = server.submit(supersede=True, settings=slow, client_tag="a")
    kept = server.submit(supersede=True, settings={"num_steps": 2}, client_tag="b")
    second = server.submit(supersede=True, settings={"num_steps": 2}, client_tag="a")
    assert server.ended(first["id"])["state"] == "cancelled"
    assert server.ended(second["id"])["state"] == "done"
    assert server.ended(kept["id"])["state"] == "done"


def test_drafts_are_not_in_the_history_and_other_pictures_are(server: Running) -> None:
    draft = server.ended(server.submit(supersede=True)["id"])["images"][0]["id"]
    picture = server.ended(server.submit()["id"])["images"][0]["id"]
    page = server.client.get("v1/history", params={"limit": 2}).json()
    shown = [entry["image"]["id"] for entry in page["data"]]
    assert shown[0] == picture
    assert draft not in shown
    older = server.client.get("v1/history", params={"limit": 2, "cursor": page["cursor"]}).json()
    assert not set(shown) & {entry["image"]["id"] for entry in older["data"]}
    assert server.client.delete(f"v1/history/{picture}").status_code == 204
    assert code(server.client.get(f"v1/images/{picture}.png"), 404) == "unknown_image"


def test_a_key_makes_a_retry_the_same_job(server: Running) -> None:
    headers = {"Idempotency-Key": "once"}
    ask = {"texts": ["an owl"], "settings": {"num_steps": 1}}
    first = server.client.post("v1/jobs", json=ask, headers=headers).json()["id"]
    assert server.client.post("v1/jobs", json=ask, headers=headers).json()["id"] == first
    server.ended(first)
    assert server.client.post("v1/jobs", json=ask, headers=headers).json()["id"] == first
    other = server.client.post("v1/jobs", json={**ask, "seeds": "5"}, headers=headers)
    assert code(other, 409) == "idempotency_conflict"


def test_a_resolved_request_can_be_sent_again(server: Running) -> None:
    job = server.submit(seeds=[4, 9])
    server.ended(job["id"])
    again = server.client.post("v1/jobs", json=job["request"])
    assert again.json()["request"] == job["request"]
    server.ended(again.json()["id"])


def test_an_upload_is_a_query_and_one_of_ours_brings_its_recipe(
    server: Running, encoded: Callable[..., bytes]
) -> None:
    upload = server.client.post("v1/uploads", content=encoded(3)).json()
    assert (upload["width"], upload["height"], upload["record"]) == (48, 40, None)
    ended = server.ended(server.submit(texts=[], images=[upload["id"]])["id"])
    assert ended["state"] == "done"
    picture = server.client.get(ended["images"][0]["url"]).content
    again = server.client.post("v1/uploads", content=picture).json()
    assert again["record"]["seed"] == 0


@pytest.mark.parametrize("data", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + b"x" * 99, b"GIF89a"])
def test_what_is_no_picture_is_refused(server: Running, data: bytes) -> None:
    assert code(server.client.post("v1/uploads", content=data), 415) == "not_a_picture"


def test_mutated_pictures_never_break_the_server(
    server: Running, encoded: Callable[..., bytes]
) -> None:
    rng = np.random.default_rng(0)
    for number in range(60):
        data = bytearray(encoded(number, ("JPEG", "PNG", "WEBP")[number % 3]))
        for place in rng.integers(0, len(data), 8):
            data[place] = rng.integers(256)
        answer = server.client.post("v1/uploads", content=bytes(data[: rng.integers(9, len(data))]))
        assert answer.status_code in (201, 415), answer.text


@pytest.mark.parametrize(
    ("request_", "pointer"),
    [
        ({}, "/"),
        ({"texts": []}, "/"),
        ({"texts": ["a", "b"]}, "/"),
        ({"texts": ["a"], "patches": ["1"]}, "/"),
        ({"texts": [" "]}, "/texts/0"),
        ({"texts": ["x" * 2001]}, "/texts/0"),
        ({"texts": ["a"], "sedes": "1"}, "/sedes"),
        ({"texts": ["a"], "settings": {"k": 0}}, "/settings/k"),
        ({"texts": ["a"], "settings": {"k": 33}}, "/settings/k"),
        ({"texts": ["a"], "settings": {"num_steps": "many"}}, "/settings/num_steps"),
        ({"texts": ["a"], "seeds": "5-1"}, "/seeds"),
        ({"texts": ["a"], "seeds": [-1]}, "/seeds"),
        ({"images": ["/etc/passwd"]}, "/"),
        ({"texts": ["a"], "start": {"image": "/etc/passwd"}}, "/"),
        ({"texts": ["a"], "retrieval": {"weights": {"1": 9}}}, "/retrieval/weights/1"),
        ({"texts": ["a"], "format": "rdm.request/2"}, "/format"),
        ([], "/"),
        ("text", "/"),
        (None, "/"),
    ],
)
def test_a_wrong_request_is_refused_by_the_name_of_its_field(
    server: Running, request_: Any, pointer: str
) -> None:
    for path in ("v1/jobs", "v1/neighbors"):
        found = problem(server.client.post(path, json=request_), 422)
        assert found["type"] == "/errors/invalid_request"
        assert found["errors"][0]["pointer"] == pointer


@pytest.mark.parametrize(
    ("request_", "status", "what"),
    [
        ({"model": "none"}, 404, "unknown_model"),
        ({"retrieval": {"databases": [{"name": "none"}]}}, 404, "unknown_database"),
        ({"retrieval": {"databases": [{"name": "birds", "version": 7}]}}, 410, "version_gone"),
        ({"texts": [], "patches": ["99999"]}, 404, "unknown_patch"),
        ({"retrieval": {"include": ["99999"]}}, 404, "unknown_patch"),
        ({"texts": [], "images": ["0" * 64]}, 404, "unknown_upload"),
        ({"seeds": "0-16"}, 422, "invalid_request"),
        ({"seeds": "0-9999999"}, 422, "invalid_request"),
        ({"settings": {"num_steps": 251}}, 422, "invalid_request"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_it_is_queued(
    server: Running, request_: dict[str, Any], status: int, what: str
) -> None:
    answer = server.client.post("v1/jobs", json={"texts": ["an owl"], **request_})
    assert code(answer, status) == what


def test_bytes_that_are_no_json_are_refused(server: Running) -> None:
    headers = {"Content-Type": "application/json"}
    for data in (b"{", b"\xff\xfe", b"[" * 5000):
        answer = server.client.post("v1/jobs", content=data, headers=headers)
        assert answer.status_code in (400, 422), answer.text


@pytest.mark.parametrize(
    "path",
    [
        "v1/jobs/none",
        "v1/jobs/none/events",
        "v1/images/none.png",
        "v1/images/none.webp",
        "v1/images/none/recipe",
        "v1/images/none/credits",
        "v1/images/..%2f..%2fjobs.sqlite.png",
        "v1/databases/none",
        "v1/databases/birds/patches/99999",
        "v1/databases/birds/patches/99999/image",
        "v1/databases/birds/patches/-1/image",
        "v1/uploads/" + "0" * 64 + ".webp",
        "nothing",
        "vendor/../../../pyproject.toml",
    ],
)
def test_what_is_not_there_is_not_found(server: Running, path: str) -> None:
    problem(server.client.get(path), 404)


def test_a_database_tells_what_it_holds(server: Running, database: RetrievalDatabase) -> None:
    (found,) = server.client.get("v1/databases").json()["data"]
    assert found["photographs"] == 8
    assert found["patches"] == database.version.num_live_patches
    assert found["models"] == ["tiny"]
    assert sum(one["patches"] for one in found["licenses"]) == found["patches"]


def test_patches_are_browsed_in_pages_to_the_last(
    server: Running, database: RetrievalDatabase
) -> None:
    seen: list[int] = []
    cursor: int | None = 0
    while cursor is not None:
        page = server.client.get(
            "v1/databases/birds/patches", params={"cursor": cursor, "limit": 3}
        ).json()
        seen += [one["patch_id"] for one in page["patches"]]
        cursor = page["cursor"]
    assert seen == database.living_ids().tolist()


def test_a_patch_is_shown_as_it_was_cut(server: Running, database: RetrievalDatabase) -> None:
    answer = server.client.get("v1/databases/birds/patches/3/image", params={"size": 32})
    shown = np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB")).astype(int)
    cut = np.asarray(database.pixels(np.array([3]))[0].convert("RGB")).astype(int)
    assert shown.shape == cut.shape
    assert np.abs(shown - cut).mean() < 8  # WebP loses a little


def test_the_server_says_that_it_is_well(server: Running) -> None:
    assert server.client.get("livez").text == "ok\n"
    assert server.client.get("readyz").json()["status"] == "ready"
    metrics = server.client.get("metrics").text
    assert 'rdm_serve_database_version{name="birds"} 1.0' in metrics
    assert 'rdm_serve_requests_total{route="/v1/jobs",status="202"}' in metrics


def test_the_description_of_the_api_is_whole(server: Running) -> None:
    paths = server.client.get("openapi.json").json()["paths"]
    assert {"/v1/jobs", "/v1/neighbors", "/v1/uploads", "/v1/history"} <= set(paths)
    assert "text/event-stream" in json.dumps(paths["/v1/jobs/{job_id}/events"])


def test_the_page_is_served_with_its_policy(server: Running) -> None:
    page = server.client.get("")
    assert "<title>retrieval-diffusion</title>" in page.text
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for name in ("main.js", "vendor/preact.js"):
        assert server.client.get(name).headers["content-type"].startswith("text/javascript")
