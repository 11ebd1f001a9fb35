"""What passes the guard: names, origins, tokens, sizes, rates."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from rdm.serving.http.guard import COOKIE, Guard, host_name, session_value
from rdm.serving.metrics import Metrics
from rdm.serving.settings import Limits, ServeSettings

TOKEN = "a-token-of-more-than-sixteen"
OPEN = ServeSettings()
CLOSED = ServeSettings(host="0.0.0.0", token=TOKEN, allowed_hosts=("pictures.example",))


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the length of the body."""
    body = await Request(scope, receive).body()
    await PlainTextResponse(str(len(body)))(scope, receive, send)


def answer(
    method: str = "GET",
    path: str = "/v1/models",
    *,
    settings: ServeSettings = OPEN,
    headers: dict[str, str] | None = None,
    content: bytes | AsyncIterator[bytes] = b"",
    host: str = "localhost:8420",
) -> httpx.Response:
    guard = Guard(echo, settings, Metrics())

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(guard)
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
            return await client.request(method, path, headers=headers, content=content)

    return asyncio.run(ask())


def code(response: httpx.Response) -> str:
    assert response.headers["content-type"] == "application/problem+json"
    return response.json()["type"].rsplit("/", 1)[-1]


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("a.b:80", "a.b"),
        ("A.B", "a.b"),
        ("[::1]:8420", "::1"),
        ("127.0.0.1", "127.0.0.1"),
        ("", ""),
    ],
)
def test_the_name_of_a_host_is_without_its_port(host: str, name: str) -> None:
    assert host_name(host) == name


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9", "[::1]:8420", "LOCALHOST:1"])
def test_the_server_goes_by_its_own_names(host: str) -> None:
    assert answer(host=host).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io"])
def test_a_rebound_name_is_refused(host: str) -> None:
    response = answer(host=host)
    assert (response.status_code, code(response)) == (403, "wrong_host")


def test_a_proxys_name_is_allowed_by_an_option() -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    response = answer(host="pictures.example", settings=CLOSED, headers=headers)
    assert response.status_code == 200


def test_probes_may_come_by_any_name() -> None:
    assert answer(path="/livez", host="10.0.0.7:8420").status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://localhost:8420"},
        {"Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
    ],
)
def test_the_page_and_programs_may_post(headers: dict[str, str]) -> None:
    assert answer("POST", headers=headers, content=b"12").text == "2"


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:9999"},
        {"Origin": "http://localhost:8420.evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://localhost:8420", "Sec-Fetch-Site": "cross-site"},
    ],
)
@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT"])
def test_pages_of_other_sites_may_not(method: str, headers: dict[str, str]) -> None:
    response = answer(method, headers=headers)
    assert (response.status_code, code(response)) == (403, "cross_site")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": TOKEN},
        {"Authorization": f"Basic {TOKEN}"},
        {"Cookie": f"{COOKIE}={TOKEN}"},
        {"Cookie": f"{COOKIE}="},
    ],
)
@pytest.mark.parametrize("path", ["/v1/models", "/v1/images/x.png", "/metrics"])
def test_without_the_token_there_is_nothing(path: str, headers: dict[str, str]) -> None:
    response = answer(path=path, settings=CLOSED, headers=headers)
    assert (response.status_code, code(response)) == (401, "no_token")


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {TOKEN}"},
        {"authorization": f"bearer {TOKEN}"},
        {"Cookie": f"other=1; {COOKIE}={session_value(TOKEN)}"},
    ],
)
def test_with_the_token_there_is(headers: dict[str, str]) -> None:
    assert answer(settings=CLOSED, headers=headers).status_code == 200


def test_the_page_and_signing_in_are_open() -> None:
    assert answer(path="/", settings=CLOSED).status_code == 200
    assert answer("POST", "/v1/session", settings=CLOSED).status_code == 200


def test_a_body_over_the_limit_is_refused_by_what_it_says() -> None:
    response = answer("POST", content=b"x" * (2**20 + 1))
    assert (response.status_code, code(response)) == (413, "too_large")


def test_and_by_what_comes() -> None:
    async def stream() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 100_000

    response = answer("POST", content=stream())
    assert (response.status_code, code(response)) == (413, "too_large")


def test_uploads_have_their_own_limit() -> None:
    settings = ServeSettings(limits=Limits(max_upload="2MB"))
    assert answer("POST", "/v1/uploads", content=b"x" * 1_900_000).text == "1900000"
    refused = answer("POST", "/v1/uploads", content=b"x" * 2_000_001, settings=settings)
    assert code(refused) == "too_large"


def test_an_address_asks_only_so_often() -> None:
    guard = Guard(echo, ServeSettings(limits=Limits(rate=3)), Metrics())

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(guard)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return [await client.post("/v1/neighbors") for _ in range(4)]

    responses = asyncio.run(ask())
    assert [response.status_code for response in responses] == [200, 200, 200, 429]
    assert int(responses[-1].headers["retry-after"]) >= 1


def test_every_answer_says_who_it_is_and_what_a_page_may_do() -> None:
    for response in (answer(), answer(host="evil.example")):
        assert response.headers["rdm-request-id"].startswith("req_")
        assert "default-src 'self'" in response.headers["content-security-policy"]
        assert "unsafe" not in response.headers["content-security-policy"]
        assert response.headers["x-content-type-options"] == "nosniff"
