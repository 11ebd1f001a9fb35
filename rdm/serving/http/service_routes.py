"""Routes of the server itself: whether it lives, how far it is, its numbers, signing in."""

from __future__ import annotations

import hmac

import psutil
from fastapi import APIRouter, Request, Response

from rdm.config import Config, Record
from rdm.serving.http.context import Serving, ServingDep
from rdm.serving.http.guard import COOKIE, session_value
from rdm.serving.problems import ServeError
from rdm.serving.settings import VERSION

router = APIRouter()


class Status(Record):
    """How far the server is."""

    status: str
    models: tuple[str, ...]
    databases: tuple[str, ...]
    drawers_ready: int
    version: str = VERSION


class SignIn(Config):
    """The token, once, for a cookie."""

    token: str


@router.get("/livez", include_in_schema=False)
async def livez() -> Response:
    """Say that the process answers."""
    return Response("ok\n", media_type="text/plain")


def _status(serving: Serving) -> Status:
    """Return how far the server is."""
    drawers = serving.service.dispatch.drawers.all
    return Status(
        status=serving.status,
        models=tuple(one.name for one in serving.models.all),
        databases=tuple(one.name for one in serving.databases.all),
        drawers_ready=sum(one.is_ready for one in drawers),
    )


@router.get("/readyz", response_model=Status, tags=["server"])
async def readyz(serving: ServingDep, response: Response) -> Status:
    """Say whether pictures can be drawn: 200 then, else 503."""
    if serving.status != "ready":
        response.status_code = 503
    return _status(serving)


@router.get("/v1/status", response_model=Status, tags=["server"])
async def told_status(serving: ServingDep) -> Status:
    """Say how far the server is, with 200 in any case."""
    return _status(serving)


@router.get("/metrics", include_in_schema=False)
async def metrics(serving: ServingDep) -> Response:
    """Return the server's numbers for Prometheus."""
    pids = {"front": None, **{d.device: d.pid for d in serving.service.dispatch.drawers.all}}
    for name, pid in pids.items():
        try:
            resident = psutil.Process(pid).memory_info().rss
        except psutil.Error:
            continue
        serving.metrics.resident_bytes.labels(name).set(resident)
    return Response(serving.metrics.page(), media_type="text/plain; version=0.0.4")


@router.post("/v1/session", status_code=204, tags=["server"])
async def sign_in(serving: ServingDep, body: SignIn, request: Request) -> Response:
    """Exchange the token for a cookie, so that pages need not keep it."""
    token = serving.settings.token
    if token is not None and not hmac.compare_digest(body.token.encode(), token.encode()):
        raise ServeError("no_token", "the token is wrong", where="token", fix="look it up")

    # Scripts cannot read the cookie, and pages of other sites cannot send it.
    response = Response(status_code=204)
    if token is not None:
        response.set_cookie(
            COOKIE,
            session_value(token),
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
            max_age=30 * 86400,
        )
    return response
