"""The application: routes, problems and the page behind the guard."""

from __future__ import annotations

import hmac
import importlib.resources
import logging
from pathlib import Path

import psutil
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from rdm.config import Config, Record
from rdm.errors import RdmError
from rdm.serving.http import image_routes, job_routes, lookup_routes
from rdm.serving.http.context import Serving
from rdm.serving.http.guard import COOKIE, Guard, problem_response, session_value
from rdm.serving.problems import FieldError, Problem, ServeError, code_of, problem_of
from rdm.serving.settings import VERSION

logger = logging.getLogger(__name__)
PAGE = Path(str(importlib.resources.files("rdm"))) / "serving" / "page"
_CODE_OF_STATUS = {404: "not_found", 405: "method_not_allowed"}


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


def build_app(serving: Serving) -> ASGIApp:
    """Return the application of a server."""
    app = FastAPI(
        title="retrieval-diffusion",
        version=VERSION,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        responses={"default": {"model": Problem, "description": "a problem (RFC 9457)"}},
    )
    _add_problems(app)
    _add_service_routes(app, serving)
    app.state.serving = serving
    for routes in (job_routes, lookup_routes, image_routes):
        app.include_router(routes.router)
    app.mount("/", StaticFiles(directory=PAGE, html=True), name="page")
    return Guard(app, serving.settings, serving.metrics)


def _add_problems(app: FastAPI) -> None:
    """Turn every error into a problem."""

    def request_id(request: Request) -> str:
        return getattr(request.state, "request_id", "")

    async def ours(request: Request, error: Exception) -> Response:
        if code_of(error) == "internal":
            logger.error("%s failed", request_id(request), exc_info=error)
        retry_after = error.retry_after if isinstance(error, ServeError) else None
        return problem_response(problem_of(error, request_id(request)), retry_after)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return problem_response(_invalid(error, request_id(request)))

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = _CODE_OF_STATUS.get(error.status_code, "invalid_request")
        known = ServeError(code, str(error.detail), where=request.url.path, fix="see /openapi.json")
        return problem_response(problem_of(known, request_id(request)))

    app.add_exception_handler(RdmError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, ours)


def _invalid(error: RequestValidationError, request_id: str) -> Problem:
    """Return the problem of a request that does not validate, with a pointer to each field."""
    found = error.errors()
    if any(one["type"] == "json_invalid" for one in found):
        broken = ServeError("bad_json", "the body is not JSON", fix="send application/json")
        return problem_of(broken, request_id)
    errors = tuple(
        FieldError(pointer="/" + "/".join(str(part) for part in one["loc"][1:]), detail=one["msg"])
        for one in found[:20]
    )
    first = errors[0]
    problem = problem_of(
        ServeError(
            "invalid_request",
            f"{first.pointer.strip('/') or 'the body'}: {first.detail}",
            where=first.pointer,
            fix="see /openapi.json",
        ),
        request_id,
    )
    return problem.model_copy(update={"errors": errors})


def _add_service_routes(app: FastAPI, serving: Serving) -> None:
    """Add the routes of the server itself."""

    @app.get("/livez", include_in_schema=False)
    async def livez() -> Response:
        return Response("ok\n", media_type="text/plain")

    def status() -> Status:
        drawers = serving.service.dispatch.drawers.all
        return Status(
            status=serving.status,
            models=tuple(one.name for one in serving.models.all),
            databases=tuple(one.name for one in serving.databases.all),
            drawers_ready=sum(one.is_ready for one in drawers),
        )

    @app.get("/readyz", response_model=Status, tags=["server"])
    async def readyz(response: Response) -> Status:
        """Say whether pictures can be drawn: 200 then, else 503."""
        if serving.status != "ready":
            response.status_code = 503
        return status()

    @app.get("/v1/status", response_model=Status, tags=["server"])
    async def told_status() -> Status:
        """Say how far the server is, with 200 in any case."""
        return status()

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        pids = {"front": None, **{d.device: d.pid for d in serving.service.dispatch.drawers.all}}
        for name, pid in pids.items():
            try:
                resident = psutil.Process(pid).memory_info().rss
            except psutil.Error:
                continue
            serving.metrics.resident_bytes.labels(name).set(resident)
        return Response(serving.metrics.page(), media_type="text/plain; version=0.0.4")

    @app.post("/v1/session", status_code=204, tags=["server"])
    async def sign_in(body: SignIn, request: Request) -> Response:
        """Exchange the token for a cookie, so that pages need not keep it."""
        token = serving.settings.token
        if token is not None and not hmac.compare_digest(body.token.encode(), token.encode()):
            raise ServeError("no_token", "the token is wrong", where="token", fix="look it up")
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
