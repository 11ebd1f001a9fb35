"""URLs from outside: which may be fetched, and what of them may be shown."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

_SECRET = re.compile(r"token|key|sig|secret|passw|pwd|auth|credential|session|jwt", re.IGNORECASE)


def public_url(url: str) -> str:
    """Return a URL without what may be a secret: user and password, and the values of parameters
    named like one.

    What is no URL (a path in a folder) is returned as it is.
    """
    if "://" not in url:
        return url
    try:
        parts = urlsplit(url)
        pairs = parse_qsl(parts.query, keep_blank_values=True)
    except ValueError:  # such as an open bracket in the host: nothing can be said of it
        return url.partition("?")[0].rpartition("@")[2]
    query = parts.query
    if any(_SECRET.search(name) for name, _ in pairs):
        query = urlencode(
            [(name, "***" if _SECRET.search(name) else value) for name, value in pairs], safe="*/:"
        )
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, ""))


def fetchable_url(url: str) -> str | None:
    """Return a URL as it goes over the wire, or None where it is not one of http or https with a
    host.

    Spaces and letters beyond ASCII are escaped. A password in the URL is refused: nothing would
    send it.
    """
    try:
        parts = urlsplit(url.strip())
        host = parts.hostname
        _ = parts.port  # raises where it is no number
    except ValueError:
        return None
    if (
        parts.scheme not in ("http", "https")
        or not host
        or "@" in parts.netloc
        or not host.isprintable()
    ):
        return None
    try:
        netloc = (
            parts.netloc.encode("idna").decode("ascii")
            if not parts.netloc.isascii()
            else parts.netloc
        )
    except UnicodeError:
        return None
    escaped = [quote(part, safe="%/:=&?~+!$,;'@()*[]") for part in (parts.path, parts.query)]
    return urlunsplit((parts.scheme, netloc, escaped[0], escaped[1], ""))
