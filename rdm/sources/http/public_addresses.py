"""Connections to public addresses alone: a list of URLs cannot reach this machine or network.

The address of the connection itself is checked, so neither a redirect nor a name that resolves to
something else the next time leads past it. Behind a proxy the proxy makes the connections, and
decides.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import urllib.request
from collections.abc import Callable
from typing import Any


class PrivateAddressError(OSError):
    """A host with an address that is not of the public internet."""


def is_public(address: str) -> bool:
    """Return whether an IP address is public: not private, loopback, link-local or multicast."""
    # A zone (`%eth0`) is no part of the address, and IPv4 within IPv6 is judged as IPv4.
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return found.is_global and not found.is_multicast


def connect_publicly(
    address: tuple[str, int], timeout: Any = None, source_address: tuple[str, int] | None = None
) -> socket.socket:
    """Connect to the first address of a host that answers; see `socket.create_connection`.

    Raises:
        PrivateAddressError: one of the host's addresses is not public.
        OSError: none answers.
    """
    # Resolved once: the checked addresses are those that are connected to.
    places = [str(found[4][0]) for found in socket.getaddrinfo(*address, type=socket.SOCK_STREAM)]
    if not all(map(is_public, places)):
        raise PrivateAddressError("the address is private")

    failure = OSError("the host has no address")
    for place in places:
        try:
            return socket.create_connection((place, address[1]), timeout, source_address)
        except OSError as error:
            failure = error
    raise failure


class _PublicConnection(http.client.HTTPConnection):
    """An http connection to a public address."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._create_connection = connect_publicly  # http.client sets it on each connection


class _PublicTLSConnection(http.client.HTTPSConnection):
    """A https connection to a public address."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._create_connection = connect_publicly


class PublicHTTPHandler(urllib.request.HTTPHandler):
    """Opens http URLs at public addresses."""

    def http_open(self, req: urllib.request.Request) -> Any:
        """Open a request; one that goes to a proxy connects anywhere."""
        return self.do_open(
            http.client.HTTPConnection if req.has_proxy() else _PublicConnection, req
        )


class PublicHTTPSHandler(urllib.request.HTTPSHandler):
    """Opens https URLs at public addresses."""

    def https_open(self, req: urllib.request.Request) -> Any:
        """Open a request; one that goes to a proxy connects anywhere."""
        proxied = getattr(req, "_tunnel_host", None) is not None
        connection: Callable[..., Any] = (
            http.client.HTTPSConnection if proxied else _PublicTLSConnection
        )
        return self.do_open(connection, req, context=self._context)  # type: ignore[attr-defined]
