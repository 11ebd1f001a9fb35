"""Files of metadata from the web, in the user's cache, fetched again only if they have changed."""

from __future__ import annotations

import hashlib
import json
import re
import urllib.request
from email.message import Message
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from rdm.errors import SourceError
from rdm.sources.http.client import FetchConfig, PatientOpener, TransferError, retrying
from rdm.sources.http.urls import fetchable_url, public_url
from rdm.storage.atomic import atomic_path
from rdm.storage.local_places import cache_path


def download(url: str, config: FetchConfig | None = None) -> Path:
    """Return a local copy of a file; the server is asked whether it is still the same.

    Raises:
        SourceError: the server does not give it. A copy that cannot be checked is not used.
        StorageError: the cache cannot be written.
    """
    # The user has named this URL, no list from outside.
    config = config or FetchConfig(allow_private_addresses=True)

    # The ending is kept, because it tells the kind of a list; a strange one is dropped.
    ending = "".join(PurePosixPath(urlsplit(url).path).suffixes[-2:])
    ending = ending if re.fullmatch(r"(\.[a-z0-9]{1,8})+", ending) else ""
    target = cache_path(f"downloads/{hashlib.sha256(url.encode()).hexdigest()[:24]}{ending}")

    try:
        return retrying(lambda: _fetch(url, target, config), config)
    except TransferError as error:
        raise SourceError(
            f"the file cannot be fetched: {error}",
            where=public_url(url),
            fix="check the URL and the network, or give a local copy",
        ) from error


def _fetch(url: str, target: Path, config: FetchConfig) -> Path:
    """Fetch a file, unless the server says that the copy is still the same."""
    request = urllib.request.Request(
        fetchable_url(url) or url, headers={"User-Agent": config.user_agent, **_conditions(target)}
    )

    try:
        with atomic_path(target) as temporary, open(temporary, "wb") as file:
            headers = PatientOpener(config).stream(request, file.write)
    except TransferError as error:
        if str(error).startswith("not modified"):
            return target
        raise

    # Tags last: without them the next call fetches the file again.
    _write_tags(target, headers)
    return target


def _write_tags(target: Path, headers: Message) -> None:
    """Record what the server said of the file, and its size."""
    tags = {name: headers[name] for name in ("ETag", "Last-Modified") if headers[name]}
    with atomic_path(_tags_path(target)) as temporary:
        temporary.write_text(
            json.dumps({**tags, "num_bytes": target.stat().st_size}), encoding="utf-8"
        )


def _conditions(target: Path) -> dict[str, str]:
    """Return the request headers that ask whether the copy is still the same."""
    try:
        tags = json.loads(_tags_path(target).read_text(encoding="utf-8"))
        if target.stat().st_size != tags.pop("num_bytes"):
            return {}
    except (OSError, ValueError, KeyError):  # no copy, or one without tags
        return {}

    names = {"ETag": "If-None-Match", "Last-Modified": "If-Modified-Since"}
    return {names[name]: value for name, value in tags.items() if name in names}


def _tags_path(target: Path) -> Path:
    return target.with_name(f"{target.name}.tags.json")
