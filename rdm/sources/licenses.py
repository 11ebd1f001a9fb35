"""Licenses: a name to read and a URL to follow, from whichever of the two a source gives."""

from __future__ import annotations

import re
from typing import NamedTuple

_CC = "https://creativecommons.org"
_LICENSE_URL = re.compile(r"creativecommons\.org/licenses/([a-z]+(?:-[a-z]+)*)/(\d\.\d)")
_LICENSE_NAME = re.compile(r"cc[ -]?((?:by)(?:[ -](?:nc|nd|sa))*)[ -](\d\.\d)", re.IGNORECASE)
_PUBLIC_DOMAIN = {
    "CC0 1.0": f"{_CC}/publicdomain/zero/1.0/",
    "Public Domain Mark 1.0": f"{_CC}/publicdomain/mark/1.0/",
}
_OTHER_NAMES = {
    "cc0": "CC0 1.0",
    "cc0 1.0": "CC0 1.0",
    "cc0-1.0": "CC0 1.0",
    "public domain mark 1.0": "Public Domain Mark 1.0",
}


class License(NamedTuple):
    """A license; both are empty where a source names none.

    Attributes:
        name: such as `CC BY 2.0`; of a license that is not known by name its URL.
        url: of its text; empty where it is not known.
    """

    name: str
    url: str


def license_of(stated: str) -> License:
    """Return the license that a source states by URL or by name."""
    stated = stated.strip()
    if found := _LICENSE_URL.search(stated):
        return License(f"CC {found[1].upper()} {found[2]}", stated)
    for name, url in _PUBLIC_DOMAIN.items():
        if stated.partition("://")[2].startswith(url.partition("://")[2].rstrip("/")):
            return License(name, stated)
    if name := _OTHER_NAMES.get(stated.lower()):
        return License(name, _PUBLIC_DOMAIN[name])
    if found := _LICENSE_NAME.fullmatch(stated):
        kind = found[1].replace(" ", "-")
        return License(
            f"CC {kind.upper()} {found[2]}", f"{_CC}/licenses/{kind.lower()}/{found[2]}/"
        )
    return License(stated, stated if stated.startswith(("http://", "https://")) else "")
