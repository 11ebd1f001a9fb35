"""Settings of a server: what it serves, where it listens, and its limits."""

from __future__ import annotations

import ipaddress
import re
from importlib.metadata import version
from pathlib import Path

from pydantic import Field

from rdm.compute.device import DeviceName
from rdm.config import ByteSize, Config
from rdm.errors import UsageError

VERSION = version("retrieval-diffusion")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MIN_TOKEN = 16


class Named(Config):
    """A model or a database, and the name that requests give it."""

    name: str
    place: str


class Limits(Config):
    """What one request, one client and the whole server may take."""

    max_images: int = Field(default=16, ge=1, description="pictures of one job")
    max_steps: int = Field(default=250, ge=1, description="steps of a picture")
    max_queued: int = Field(default=64, ge=1, description="jobs that wait or draw")
    max_per_client: int = Field(default=8, ge=1, description="jobs of one client among them")
    max_wait: float = Field(default=120.0, gt=0, description="estimated seconds of the queue")
    max_upload: ByteSize = "20MB"
    rate: int = Field(default=600, ge=1, description="requests of one client in a minute")
    keep_days: float = Field(default=7.0, gt=0, description="days that pictures are kept")
    keep_bytes: ByteSize = "2GB"


class ServeSettings(Config):
    """A server."""

    models: tuple[Named, ...] = ()
    databases: tuple[Named, ...] = ()
    host: str = "127.0.0.1"
    port: int = Field(default=8420, ge=0, le=65535)
    token: str | None = None
    allowed_hosts: tuple[str, ...] = Field(
        default=(), description="names that a proxy forwards in the Host header"
    )
    device: DeviceName = "auto"
    data: Path = Path("rdm-serve")
    clip_retrieval: bool = Field(default=False, description="serve clip-retrieval's routes too")
    limits: Limits = Limits()


def parse_named(texts: list[str], option: str) -> tuple[Named, ...]:
    """Return what `NAME=PLACE` options name; without `NAME=` the last part of the place.

    Raises:
        UsageError: a name is given twice, or holds what a name may not.
    """
    found: dict[str, Named] = {}
    for text in texts:
        # Without a name the folder's own.
        name, separator, place = text.partition("=")
        if not separator:
            name, place = text.rstrip("/").rsplit("/", 1)[-1], text
        if not _NAME.fullmatch(name) or not place:
            raise UsageError(
                f"{option} {text!r} names nothing",
                fix=f"write {option} NAME=PLACE; names are of letters, digits, dot, dash",
            )
        if name in found:
            raise UsageError(
                f"{option} {name!r} is given twice", fix=f"write {option} OTHER={place}"
            )
        found[name] = Named(name=name, place=place)
    return tuple(found.values())


def is_loopback(host: str) -> bool:
    """Return whether nothing outside this machine reaches a host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_token(path: Path | None, host: str) -> str | None:
    """Return the token that clients must show; None on loopback without a file.

    Raises:
        UsageError: the host is no loopback address and there is no file, the file cannot be read,
            others may read it, or its token is short.
    """
    if path is None:
        if is_loopback(host):
            return None
        raise UsageError(
            f"{host} can be reached from outside, and no token protects the server",
            where="--host",
            fix="--token-file FILE with a long random line, or --host 127.0.0.1",
        )

    try:
        token = path.read_text(encoding="utf-8").strip()
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise UsageError(
            f"the token cannot be read: {error}", where=path, fix="check --token-file"
        ) from error

    # A token that others may read protects nothing, and neither does one that is guessed.
    if mode & 0o077:
        raise UsageError(
            "other users of this machine may read the token", where=path, fix=f"chmod 600 {path}"
        )
    if len(token) < _MIN_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(
            f"the token is no line of {_MIN_TOKEN} or more printable ASCII characters",
            where=path,
            fix=f"python -c 'import secrets; print(secrets.token_urlsafe())' > {path}",
        )
    return token
