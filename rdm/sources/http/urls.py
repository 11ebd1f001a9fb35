"""URLs from outside: which may be fetched, and what of them may be shown to people."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

_SECRET = re.compile(r"token|key|sig|secret|passw|pwd|auth|credential|session|jwt", re.IGNORECASE)


def public_url(url: str) -> str:
    """Return a URL without user, password, and values of parameters that may be secrets.

    A text that is no URL (a path in a folder) is returned unchanged.
    """
    if "://" not in url:
        return url
    try:
        parts = urlsplit(url)
        pairs = parse_qsl(parts.query, keep_blank_values=True)
    except ValueError:  # such as an open bracket in the host: nothing more can be said of it
        return url.partition("?")[0].rpartition("@")[2]

    query = parts.query
    if any(_SECRET.search(name) for name, _ in pairs):
        query = urlencode(
            [(name, "***" if _SECRET.search(name) else value) for name, value in pairs], safe="*/:"
        )
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, ""))


def fetchable_url(url: str) -> str | None:
    """Return a URL as it goes over the wire; None if it is not http or https with a host.

    Spaces and letters beyond ASCII are escaped. A URL with a password is refused: nothing would
    send it.
    """
    try:
        parts = urlsplit(url.strip())
        host = parts.hostname
        _ = parts.port  # raises where it is not a number
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or "@" in parts.netloc:
        return None
    if not host or not host.isprintable():
        return None

    # Hosts go as punycode, paths and queries percent-encoded; what is escaped stays so.
    netloc = parts.netloc
    try:
        if not netloc.isascii():
            netloc = netloc.encode("idna").decode("ascii")
    except UnicodeError:
        return None

    escaped = [quote(part, safe="%/:=&?~+!$,;'@()*[]") for part in (parts.path, parts.query)]
    return urlunsplit((parts.scheme, netloc, escaped[0], escaped[1], ""))
