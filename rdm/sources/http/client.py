"""HTTP within limits: one URL, errors sorted by cause, tried again where that helps.

img2dataset's own downloads go through this opener (`img2dataset_process` installs it), because
img2dataset has no limit to a picture's size or time, retries everything alike and without a pause,
and opens `file:` URLs.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import string
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import Any, Protocol, TypeVar
from urllib.response import addinfourl

from pydantic import Field

from rdm.config import Config
from rdm.sources.causes import is_passing
from rdm.sources.http.encodings import BodyDecoder, EncodingError
from rdm.sources.http.public_addresses import (
    PrivateAddressError,
    PublicHTTPHandler,
    PublicHTTPSHandler,
)
from rdm.sources.http.urls import fetchable_url

CHUNK_BYTES = 1 << 16
ResultT = TypeVar("ResultT")


class FetchConfig(Config):
    """Limits of fetching URLs: attempts, pauses, times, sizes."""

    attempts: int = Field(default=4, ge=1, description="attempts per URL, for errors that may pass")
    backoff_seconds: float = Field(
        default=2,
        ge=0,
        description="pause before the second attempt; doubles with each. Retry-After wins if "
        "longer",
    )
    max_backoff_seconds: float = Field(default=60, ge=0, description="longest pause")
    timeout_seconds: float = Field(default=20, gt=0, description="longest silence of a server")
    max_seconds: float = Field(default=120, gt=0, description="longest time for one picture")
    max_bytes: int = Field(default=64_000_000, ge=1, description="largest picture file")
    num_threads: int = Field(
        default=16, ge=1, le=256, description="downloads at once, of each worker"
    )
    allow_private_addresses: bool = Field(
        default=False, description="whether a URL may lead into this machine or a private network"
    )
    user_agent: str = Field(
        default="retrieval-diffusion",
        min_length=1,
        description="name told to servers, which opt-out headers may address",
    )


class TransferError(OSError):
    """A URL that could not be fetched: `cause: detail`, in words that say nothing of the URL."""

    def __init__(self, cause: str, detail: str = "", retry_after: float = 0) -> None:
        self.retry_after = retry_after
        super().__init__(f"{cause}: {detail}" if detail else cause)

    @property
    def is_passing(self) -> bool:
        """Whether another attempt may succeed."""
        return is_passing(str(self))


class Response(Protocol):
    """The part of an answer that is read here."""

    headers: Message

    def read1(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes, as soon as there are any; none at the end."""
        ...


class _RedirectHandler(urllib.request.HTTPRedirectHandler):
    """Follows redirects to any URL that a list may hold, also in raw UTF-8."""

    def http_error_302(
        self, req: Any, fp: Any, code: int, msg: str, headers: http.client.HTTPMessage
    ) -> Any:
        """Follow a redirect whose target can be fetched.

        Raises:
            HTTPError: it cannot be fetched, or the redirects lead in a circle.
        """
        if (target := headers.get("Location", headers.get("URI"))) is not None:
            try:
                # http.client reads headers as Latin-1.
                target = target.encode("latin-1").decode("utf-8")
            except UnicodeError:  # another encoding: its bytes are sent back as they came
                target = urllib.parse.quote(target, encoding="latin-1", safe=string.punctuation)

            url = fetchable_url(urllib.parse.urljoin(req.full_url, target.strip()))
            if url is None:
                raise urllib.error.HTTPError(
                    req.full_url, code, "the target cannot be fetched", headers, fp
                )

            del headers["Location"], headers["URI"]
            headers["Location"] = url
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


class PatientOpener:
    """Opens http and https URLs: what `urllib.request.install_opener` takes."""

    def __init__(self, config: FetchConfig) -> None:
        self.config = config
        self._director = urllib.request.OpenerDirector()
        anywhere = config.allow_private_addresses
        for handler in (
            urllib.request.ProxyHandler,
            urllib.request.UnknownHandler,
            urllib.request.HTTPHandler if anywhere else PublicHTTPHandler,
            urllib.request.HTTPSHandler if anywhere else PublicHTTPSHandler,
            urllib.request.HTTPDefaultErrorHandler,
            _RedirectHandler,
            urllib.request.HTTPErrorProcessor,
        ):
            self._director.add_handler(handler())

    def open(self, request: Any, data: object = None, timeout: object = None) -> addinfourl:
        """Return the answer with its whole body in memory; `data` and `timeout` are not used.

        Raises:
            TransferError: it could not be fetched within the limits and the attempts.
        """
        del data, timeout
        return retrying(lambda: self._receive(request), self.config)

    def stream(self, request: urllib.request.Request, write: Callable[[bytes], object]) -> Message:
        """Pass an answer's body on piece by piece, without a limit; return its headers.

        One attempt only: pieces that were passed on before an error cannot be taken back here.

        Raises:
            TransferError: it could not be fetched.
        """
        try:
            with self._director.open(request, timeout=self.config.timeout_seconds) as response:
                for piece in _decoded(response):
                    write(piece)
                return response.headers
        except urllib.error.HTTPError as error:
            raise _http_failure(error) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise failure_of(error) from None

    def _receive(self, request: Any) -> addinfourl:
        """Fetch once, within the limits of one picture."""
        deadline = time.monotonic() + self.config.max_seconds
        try:
            with self._director.open(request, timeout=self.config.timeout_seconds) as response:
                # A reservation of rights is an owner's refusal.
                if response.headers.get("TDM-Reservation", "").strip() == "1":
                    raise TransferError("opted out", "TDM-Reservation")
                body = self._body(response, deadline)
                return addinfourl(
                    io.BytesIO(body), response.headers, response.geturl(), response.status
                )
        except urllib.error.HTTPError as error:
            raise _http_failure(error) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise failure_of(error) from None

    def _body(self, response: Response, deadline: float) -> bytes:
        """Return an answer's decoded body; the limits hold for what it inflates to, too."""
        limit, body = self.config.max_bytes, bytearray()
        if (_declared_bytes(response) or 0) > limit:
            raise TransferError("too large", f"over {limit} bytes")

        for piece in _decoded(response):
            body += piece
            if len(body) > limit:
                raise TransferError("too large", f"over {limit} bytes")
            if time.monotonic() > deadline:
                raise TransferError("timed out", "too slow")
        return bytes(body)


def retrying(action: Callable[[], ResultT], config: FetchConfig) -> ResultT:
    """Return an action's result; attempt it again after a pause if its error may pass.

    Raises:
        TransferError: of the last attempt, or one that does not pass.
    """
    for attempt in range(1, config.attempts + 1):
        try:
            return action()
        except TransferError as error:
            if not error.is_passing or attempt == config.attempts:
                raise
            pause = max(config.backoff_seconds * 2 ** (attempt - 1), error.retry_after)
            time.sleep(min(pause, config.max_backoff_seconds))
    raise AssertionError("unreachable: there is at least one attempt")


def failure_of(error: BaseException) -> TransferError:
    """Return any error of a transfer but an HTTP status as a cause of the ledger."""
    if isinstance(error, TransferError):
        return error

    # urllib wraps the error that counts.
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, BaseException):
        return failure_of(error.reason)

    if isinstance(error, EncodingError):
        return TransferError(error.cause, error.detail)

    if isinstance(error, socket.gaierror):
        return TransferError(
            "host not reached" if error.errno == socket.EAI_AGAIN else "unknown host"
        )

    for kinds, cause in _CAUSES:
        if isinstance(error, kinds):
            return TransferError(cause, type(error).__name__)
    return TransferError("download failed", type(error).__name__)


# The first that fits counts: subclasses before their bases.
_CAUSES: tuple[tuple[tuple[type[BaseException], ...], str], ...] = (
    ((PrivateAddressError,), "private address"),
    ((TimeoutError,), "timed out"),
    ((ssl.SSLCertVerificationError,), "certificate refused"),
    ((http.client.IncompleteRead,), "cut short"),
    ((ConnectionError, ssl.SSLError), "no connection"),
    ((http.client.InvalidURL, urllib.error.URLError, ValueError), "not a usable URL"),
    ((http.client.HTTPException,), "not an HTTP answer"),
    ((OSError,), "no connection"),
)


def _http_failure(error: urllib.error.HTTPError) -> TransferError:
    """Return the cause that an HTTP status stands for, and the server's pause."""
    code, wait = error.code, error.headers.get("Retry-After", "") if error.headers else ""
    error.close()

    if code in (404, 410):
        cause = "not found"
    elif code == 304:
        cause = "not modified"
    elif 300 <= code < 400:
        cause = "redirect refused"
    elif code in (425, 429):
        cause = "too many requests"
    elif code == 408:
        cause = "timed out"
    else:
        cause = "server error" if code >= 500 else "refused by the server"

    return TransferError(cause, f"HTTP {code}", _seconds_of(wait))


def _seconds_of(wait: str) -> float:
    """Return the seconds of a Retry-After: a number, or the time until a date; else 0."""
    if wait.isascii() and wait.isdigit() and len(wait) < 6:
        return float(wait)
    try:
        until = parsedate_to_datetime(wait)
    except ValueError:
        return 0.0
    return max(0.0, until.replace(tzinfo=until.tzinfo or UTC).timestamp() - time.time())


def _chunks(response: Response) -> Iterator[bytes]:
    """Yield an answer's body in pieces; raise if it ends before its declared length."""
    # HTTPResponse.read1 does not count the declared length down on every Python version.
    declared, received = _declared_bytes(response), 0
    while declared is None or received < declared:
        size = CHUNK_BYTES if declared is None else min(CHUNK_BYTES, declared - received)
        chunk = response.read1(size)
        if not chunk:
            break
        received += len(chunk)
        yield chunk
    if declared is not None and received < declared:
        raise http.client.IncompleteRead(b"", declared - received)


def _decoded(response: Response) -> Iterator[bytes]:
    """Yield the body without its Content-Encoding, which servers use without being asked to."""
    decoder = BodyDecoder(",".join(response.headers.get_all("Content-Encoding", [])))
    for chunk in _chunks(response):
        yield from decoder.feed(chunk)
    yield from decoder.finish()


def _declared_bytes(response: Response) -> int | None:
    """Return the length that an answer declares; None if it is unknown or chunked."""
    length = response.headers.get("Content-Length", "")
    is_chunked = response.headers.get("Transfer-Encoding", "").lower() == "chunked"
    if is_chunked or not (length.isascii() and length.isdigit()):
        return None
    return int(length)
