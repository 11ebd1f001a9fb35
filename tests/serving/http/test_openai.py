"""OpenAI's images endpoint, as its clients call it."""

from __future__ import annotations

import base64
import io
import json
import time
from typing import Any

import httpx
import pytest
from live_server import Running
from PIL import Image

pytestmark = pytest.mark.slow
PATH = "v1/images/generations"


def generate(server: Running, **body: Any) -> httpx.Response:
    asked = {"prompt": "an owl", "num_inference_steps": 2, "seed": 3, **body}
    return server.client.post(PATH, json=asked)


def test_pictures_come_in_the_answer(server: Running) -> None:
    answer = generate(server, n=2).json()
    assert [one["seed"] for one in answer["data"]] == [3, 4]
    for one in answer["data"]:
        with Image.open(io.BytesIO(base64.b64decode(one["b64_json"]))) as picture:
            assert picture.size == (32, 32)
    assert answer["size"] == "32x32"
    assert abs(answer["created"] - time.time()) < 60


def test_or_as_addresses(server: Running) -> None:
    (one,) = generate(server, response_format="url").json()["data"]
    assert server.client.get(one["url"]).headers["content-type"] == "image/png"
    assert server.client.get(one["credits"]).status_code == 200


def test_harmless_fields_are_taken_and_named(server: Running) -> None:
    answer = generate(server, quality="hd", user="me", size="auto")
    assert answer.status_code == 200
    assert answer.headers["rdm-ignored"] == "quality, user"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"size": "1024x1024"}, "size"),
        ({"prompt": ""}, "/prompt"),
        ({"prompt": "  "}, "prompt"),
        ({"n": 0}, "/n"),
        ({"n": 17}, "seeds"),
        ({"background": "transparent"}, "/background"),
        ({"mask": "x"}, "/mask"),
    ],
)
def test_what_is_not_done_is_refused_as_openai_refuses(
    server: Running, body: dict[str, Any], param: str
) -> None:
    answer = generate(server, **body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert error["message"]


def test_an_unknown_model_is_not_found(server: Running) -> None:
    answer = generate(server, model="gpt-image-1")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "unknown_model"


def test_a_stream_ends_with_each_picture(server: Running) -> None:
    answer = generate(server, n=2, stream=True, partial_images=2, num_inference_steps=20)
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line[:6] == "data: "]
    done = [event for event in events if event["type"] == "image_generation.completed"]
    assert len(done) == 2
    for event in done:
        assert base64.b64decode(event["b64_json"]).startswith(b"\x89PNG")
        assert event["usage"]["total_tokens"] == 0
    partial = [event for event in events if event["type"] == "image_generation.partial_image"]
    assert [event["partial_image_index"] for event in partial] == list(range(len(partial)))


def test_a_client_that_goes_away_takes_its_job_along(server: Running) -> None:
    slow = {"prompt": "an owl", "num_inference_steps": 250, "n": 16}
    with pytest.raises(httpx.ReadTimeout):
        server.client.post(PATH, json=slow, timeout=1.0)
    end = time.monotonic() + 20
    while 'rdm_serve_jobs_total{state="cancelled"} 1.0' not in server.client.get("metrics").text:
        assert time.monotonic() < end
        time.sleep(0.1)
