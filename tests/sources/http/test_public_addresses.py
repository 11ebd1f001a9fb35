from __future__ import annotations

import socket
import urllib.request
from typing import Any

import pytest

from rdm.sources.http.client import FetchConfig, PatientOpener, TransferError
from rdm.sources.http.public_addresses import PrivateAddressError, connect_publicly, is_public


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
    ]
    + [
        "::1",
        "fe80::1",
        "fe80::1%eth0",
        "fd00::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "ff02::1",
    ],
)
def test_private_address_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "151.101.1.140", "2606:4700::1111", "::ffff:8.8.8.8"]
)
def test_public_address_is_public(address: str) -> None:
    assert is_public(address)


def test_host_with_one_private_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80))
        for address in ("8.8.8.8", "10.0.0.1")
    ]
    # No name on this machine resolves to public addresses, and a test asks no other resolver.
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(PrivateAddressError):
        connect_publicly(("pictures.example", 80))


def test_redirect_to_a_private_address_is_refused(
    server: Any, answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first host counts as public here; the one that it leads to does not."""
    secret = server.serve("/secret", answer(b"secret"))
    start = server.serve(
        "/start", answer(status=302, headers={"Location": secret.replace("127.0.0.1", "127.0.0.2")})
    )
    # Nothing that a test may reach is public: one of two loopback addresses stands for it.
    monkeypatch.setattr(
        "rdm.sources.http.public_addresses.is_public", lambda address: address == "127.0.0.1"
    )
    with pytest.raises(TransferError, match="private address"):
        PatientOpener(FetchConfig(attempts=1, timeout_seconds=2)).open(
            urllib.request.Request(start)
        )
    assert (server.requests["/start"], server.requests["/secret"]) == (1, 0)
