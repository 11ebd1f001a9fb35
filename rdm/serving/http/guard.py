"""The guard: what every request passes before a route sees it, and every response after."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
import time
from collections import OrderedDict
from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rdm.config import parse_bytes
from rdm.serving.metrics import Metrics
from rdm.serving.problems import Problem, ServeError, code_of, problem_of
from rdm.serving.settings import VERSION, ServeSettings

logger = logging.getLogger(__name__)
COOKIE = "rdm_session"
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_CLOSED = ("/v1/", "/metrics", "/metadata", "/knn-service", "/indices-list")
_PROBES = frozenset({"/livez", "/readyz"})
_MAX_JSON = 1 << 20
_BODY_SECONDS = 60.0
_MAX_BUCKETS = 10_000
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "RDM-Version": VERSION,
}


def problem_response(problem: Problem, retry_after: float | None = None) -> Response:
    """Return a problem as RFC 9457 has it."""
    headers = {} if retry_after is None else {"Retry-After": str(max(1, round(retry_after)))}
    return Response(
        problem.model_dump_json(),
        status_code=problem.status,
        media_type="application/problem+json",
        headers=headers,
    )


def session_value(token: str) -> str:
    """Return what a browser's cookie holds instead of the token itself."""
    return hmac.new(token.encode(), b"rdm serve session", hashlib.sha256).hexdigest()


class Guard:
    """ASGI middleware: names, origins, tokens, rates and sizes; headers and metrics."""

    def __init__(self, app: ASGIApp, settings: ServeSettings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        self._max_upload = parse_bytes(settings.limits.max_upload)
        self._rates = _Rates(settings.limits.rate)
        own = {"localhost", "127.0.0.1", "::1", settings.host, *settings.allowed_hosts}
        self._hosts = frozenset(name.strip("[]").lower() for name in own)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with a problem."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        request_id = f"req_{secrets.token_hex(8)}"
        scope.setdefault("state", {})["request_id"] = request_id
        # 500 until something is sent: an error that nobody foresaw sends nothing.
        started, status = time.perf_counter(), 500

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in {**_HEADERS, "RDM-Request-Id": request_id}.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._check(scope)
            receive = await self._with_body(scope, receive)
        except ServeError as error:
            self._metrics.rejected.labels(code_of(error)).inc()
            problem = problem_of(error, request_id)
            await problem_response(problem, error.retry_after)(scope, receive, sending)
        else:
            await self._app(scope, receive, sending)
        finally:
            # The route's pattern, not its path: ids would make a series each.
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.request_seconds.labels(route).observe(time.perf_counter() - started)

    def _check(self, scope: Scope) -> None:
        """Raise ServeError for a request that no route may see."""
        headers, path = Headers(scope=scope), scope["path"]
        if path in _PROBES:
            return

        # DNS rebinding: a page elsewhere may have its own name resolved to this machine.
        host = headers.get("host", "")
        if host_name(host) not in self._hosts:
            raise ServeError(
                "wrong_host",
                f"the server does not go by the name {host[:80]!r}",
                where="Host",
                fix="start it with --allowed-host NAME",
            )

        # Only what changes something is limited, and refused to pages of other sites.
        is_safe = scope["method"] in _SAFE
        if not is_safe:
            _check_origin(headers, host)
            self._rates.take((scope.get("client") or ("",))[0])

        # The page and its way to sign in are open; whatever has data is not.
        is_open = path == "/v1/session" or not path.startswith(_CLOSED)
        if not is_open:
            self._check_token(headers)

    def _check_token(self, headers: Headers) -> None:
        token = self._settings.token
        if token is None:
            return

        # Programs send the token itself; compared in constant time.
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(given.encode(), token.encode()):
            return

        # The page has a cookie that is derived from it.
        try:
            cookies = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            cookies = SimpleCookie()
        shown = cookies[COOKIE].value if COOKIE in cookies else ""
        if not hmac.compare_digest(shown.encode(), session_value(token).encode()):
            raise ServeError(
                "no_token",
                "the server wants its token",
                where="Authorization",
                fix="send Authorization: Bearer TOKEN, or sign in on the page",
            )

    async def _with_body(self, scope: Scope, receive: Receive) -> Receive:
        """Read the body within its limit, and return a `receive` that gives it at once."""
        if scope["method"] in _SAFE:
            return receive

        # By the header first, so that too much is refused before it is read.
        limit = self._max_upload if scope["path"] == "/v1/uploads" else _MAX_JSON
        told = Headers(scope=scope).get("content-length", "")
        if told.isdigit() and int(told) > limit:
            raise _too_large(limit)

        # Then by count: a header may be absent, or lie.
        body = bytearray()
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        break
                    body += message.get("body", b"")
                    if len(body) > limit:
                        raise _too_large(limit)
                    if not message.get("more_body"):
                        break
        except TimeoutError as error:
            raise ServeError(
                "too_slow", f"the body took over {_BODY_SECONDS:.0f} s", fix="send it at once"
            ) from error

        # The app asks for the body as if nothing had been read.
        is_given = False

        async def receiving() -> Message:
            nonlocal is_given
            if is_given:
                return await receive()
            is_given = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        return receiving


def host_name(host: str) -> str:
    """Return the name of a Host header, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def _check_origin(headers: Headers, host: str) -> None:
    """Raise ServeError for a request that another site's page makes."""
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    is_foreign = origin is not None and origin.partition("://")[2].lower() != host.lower()
    if is_foreign or (site is not None and site not in ("same-origin", "none")):
        raise ServeError(
            "cross_site",
            "pages of other sites may not ask this server",
            where="Origin",
            fix="use the server's own page, or a program without Origin",
        )


def _too_large(limit: int) -> ServeError:
    return ServeError(
        "too_large", f"the body has over {limit} bytes", fix="send less, or raise --max-upload"
    )


class _Rates:
    """A bucket of requests for each address, filled evenly over a minute."""

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, address: str) -> None:
        """Count a request, or raise ServeError."""
        # A bucket that fills with time; a new client's is full.
        now = time.monotonic()
        level, last = self._buckets.pop(address, (float(self._per_minute), now))
        per_second = self._per_minute / 60
        level = min(float(self._per_minute), level + (now - last) * per_second)
        is_empty = level < 1
        self._buckets[address] = (level - (not is_empty), now)

        # The addresses that were longest silent go first, so that memory stays bounded.
        while len(self._buckets) > _MAX_BUCKETS:
            self._buckets.popitem(last=False)

        if is_empty:
            raise ServeError(
                "rate_limited",
                f"{self._per_minute} requests in a minute are allowed",
                fix="wait, then ask more slowly",
                retry_after=(1 - level) / per_second,
            )
