"""Captions of photographs from files beside them: one caption a line, or JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rdm.errors import SourceError

MAX_CAPTION_BYTES = 1_000_000  # of one file


def captions_of_text(data: bytes, where: str) -> tuple[str, ...]:
    """Return the lines of a text file that are not blank.

    Args:
        data: the bytes of the file.
        where: its place, for the message.

    Raises:
        SourceError: it is too long, or not UTF-8.
    """
    return _cleaned(_text(data, where).splitlines())


def captions_of_json(data: bytes, where: str) -> tuple[str, ...]:
    """Return `captions` (a list) or `caption` (one text) of a JSON object; () if it has neither.

    Raises:
        SourceError: it is too long or not JSON, or a caption is not a text.
    """
    try:
        found = json.loads(_text(data, where))
    except ValueError as error:
        raise _damaged(f"a file of captions is no JSON: {error}", where) from error

    if not isinstance(found, dict):
        return ()

    captions = found.get("captions")
    if captions is None:
        captions = [found["caption"]] if found.get("caption") is not None else []

    if not isinstance(captions, list) or not all(isinstance(one, str) for one in captions):
        raise _damaged("captions are no list of texts", where)
    return _cleaned(captions)


def _cleaned(captions: Sequence[str]) -> tuple[str, ...]:
    """Return captions with single spaces, without empty ones."""
    return tuple(clean for caption in captions if (clean := " ".join(caption.split())))


def _text(data: bytes, where: str) -> str:
    if len(data) > MAX_CAPTION_BYTES:
        raise _damaged(f"a file of captions has over {MAX_CAPTION_BYTES:,} bytes", where)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _damaged(f"a file of captions is no UTF-8: {error}", where) from error


def _damaged(what: str, where: str) -> SourceError:
    fix = 'one caption a line in KEY.txt, or {"captions": ["...", ...]} in KEY.json'
    return SourceError(what, where=where, fix=fix)
