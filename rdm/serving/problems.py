"""Problems: what clients are told, as RFC 9457 has it, out of this library's errors."""

from __future__ import annotations

from rdm.config import Record
from rdm.errors import (
    DatabaseError,
    DeviceError,
    EncoderMismatchError,
    RdmError,
    SourceError,
    StorageError,
    UsageError,
)


class FieldError(Record):
    """What is wrong with one field of a request."""

    pointer: str
    detail: str


class Problem(Record):
    """The body of a failed request; `detail` says what, `where` and `fix` as errors do."""

    type: str
    title: str
    status: int
    detail: str
    where: str = ""
    fix: str = ""
    request_id: str = ""
    retryable: bool = False
    errors: tuple[FieldError, ...] = ()


_TITLES = {
    "bad_json": (400, "The body is not JSON"),
    "no_token": (401, "No token, or a wrong one"),
    "cross_site": (403, "The request comes from another site"),
    "wrong_host": (403, "The server does not go by this name"),
    "not_found": (404, "There is no such page"),
    "unknown_job": (404, "There is no such job"),
    "unknown_image": (404, "There is no such picture"),
    "unknown_upload": (404, "There is no such upload"),
    "unknown_model": (404, "There is no such model"),
    "unknown_database": (404, "There is no such database"),
    "unknown_patch": (404, "There is no such patch"),
    "method_not_allowed": (405, "The method is not allowed here"),
    "encoder_mismatch": (409, "Model and database do not belong to the same encoder"),
    "job_ended": (409, "The job has ended already"),
    "idempotency_conflict": (409, "The key belongs to another request"),
    "version_gone": (410, "The version is served no more"),
    "patch_removed": (410, "A photograph was removed"),
    "too_slow": (408, "The body did not come in time"),
    "too_large": (413, "The body is too large"),
    "not_a_picture": (415, "The upload is no picture"),
    "invalid_request": (422, "The request cannot be understood"),
    "too_few_neighbors": (422, "The database has too few photographs for this"),
    "rate_limited": (429, "Too many requests"),
    "client_queue_full": (429, "Too many jobs of this client wait"),
    "internal": (500, "The server failed"),
    "queue_full": (503, "The queue is full"),
    "draining": (503, "The server is shutting down"),
    "starting": (503, "The server is starting"),
    "worker_died": (503, "The process that was drawing died"),
    "out_of_memory": (503, "The device has too little memory"),
    "unavailable": (503, "What the server reads is not available"),
}
CODES = tuple(_TITLES)
_RETRYABLE = {
    "rate_limited",
    "client_queue_full",
    "queue_full",
    "draining",
    "starting",
    "worker_died",
    "unavailable",
}


class ServeError(RdmError):
    """An error with the code that clients are told.

    Args:
        code: one of `CODES`.
        what: what went wrong.
        where: the field or thing concerned.
        fix: what to do about it.
        retry_after: seconds until another try is worth it; None: not told.
    """

    def __init__(
        self,
        code: str,
        what: str,
        *,
        where: object = "",
        fix: str = "",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(what, where=where, fix=fix)
        self.code = code
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (self.code, self.what, self.where, self.fix, self.retry_after))


def _rebuild(code: str, what: str, where: str, fix: str, retry_after: float | None) -> ServeError:
    return ServeError(code, what, where=where, fix=fix, retry_after=retry_after)


def code_of(error: Exception) -> str:
    """Return the code of an error; `internal` for what no user can mend."""
    if isinstance(error, ServeError):
        return error.code
    if isinstance(error, EncoderMismatchError):
        return "encoder_mismatch"
    if isinstance(error, UsageError | SourceError):
        return "invalid_request"
    if isinstance(error, DeviceError):
        return "out_of_memory"
    if isinstance(error, StorageError | DatabaseError):
        return "unavailable"
    return "internal"


def problem_of(error: Exception, request_id: str = "") -> Problem:
    """Return what clients are told of an error; of a bug nothing but the request's id."""
    code = code_of(error)
    status, title = _TITLES[code]

    # A bug's text may name folders or values of another client.
    if code == "internal" or not isinstance(error, RdmError):
        fix = f"report this with {request_id}: the server's log has the rest" if request_id else ""
        return Problem(
            type=f"/errors/{code}",
            title=title,
            status=status,
            detail="an error that nobody foresaw",
            fix=fix,
            request_id=request_id,
        )

    # Folders of the server are none of a client's business.
    where = error.where if isinstance(error, ServeError) else error.where.rsplit("/", 1)[-1]
    return Problem(
        type=f"/errors/{code}",
        title=title,
        status=status,
        detail=error.what,
        where=where,
        fix=error.fix,
        request_id=request_id,
        retryable=code in _RETRYABLE,
    )
