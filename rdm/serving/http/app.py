"""The application: routes, problems and the page behind the guard."""

from __future__ import annotations

import importlib.resources
import logging
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from rdm.errors import RdmError
from rdm.serving.http import (
    clip_retrieval_routes,
    image_routes,
    job_routes,
    lookup_routes,
    openai_routes,
    service_routes,
)
from rdm.serving.http.context import Serving
from rdm.serving.http.guard import Guard, problem_response
from rdm.serving.problems import FieldError, Problem, ServeError, code_of, problem_of
from rdm.serving.settings import VERSION

logger = logging.getLogger(__name__)
PAGE = Path(str(importlib.resources.files("rdm"))) / "serving" / "page"
_CODE_OF_STATUS = {404: "not_found", 405: "method_not_allowed"}


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

    app.state.serving = serving

    for routes in (service_routes, job_routes, lookup_routes, image_routes, openai_routes):
        app.include_router(routes.router)
    # Under the paths of another program, so only where it is asked for.
    if serving.settings.clip_retrieval:
        app.include_router(clip_retrieval_routes.router)

    # Last: the page answers what no route does.
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
        return _answer(request, problem_of(error, request_id(request)), retry_after)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return _answer(request, _invalid(error, request_id(request)))

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = _CODE_OF_STATUS.get(error.status_code, "invalid_request")
        known = ServeError(code, str(error.detail), where=request.url.path, fix="see /openapi.json")
        return _answer(request, problem_of(known, request_id(request)))

    # The last also answers bugs: no client sees a trace.
    app.add_exception_handler(RdmError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, ours)


def _answer(request: Request, problem: Problem, retry_after: float | None = None) -> Response:
    """Return a problem in the form that the route's clients read."""
    response = problem_response(problem, retry_after)
    if request.url.path != openai_routes.PREFIX:
        return response
    status = 400 if problem.status == 422 else problem.status
    headers = {"Retry-After": response.headers["retry-after"]} if retry_after else {}
    return JSONResponse(openai_routes.openai_error(problem), status, headers=headers)


def _invalid(error: RequestValidationError, request_id: str) -> Problem:
    """Return the problem of a request that does not validate, with a pointer to each field."""
    # A broken body has no fields to point to.
    found = error.errors()
    if any(one["type"] == "json_invalid" for one in found):
        broken = ServeError("bad_json", "the body is not JSON", fix="send application/json")
        return problem_of(broken, request_id)

    # Twenty fields at most: a body may have thousands that are wrong.
    errors = tuple(
        FieldError(pointer="/" + "/".join(str(part) for part in one["loc"][1:]), detail=one["msg"])
        for one in found[:20]
    )

    # The first one stands for all where only a sentence is shown.
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
