from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdm.sources.http.urls import fetchable_url, public_url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://example.org/a.jpg", "https://example.org/a.jpg"),
        ("https://me:secret@example.org/a.jpg#x", "https://example.org/a.jpg"),
        (
            "https://example.org/a?size=2&X-Amz-Signature=abc",
            "https://example.org/a?size=2&X-Amz-Signature=***",
        ),
        ("https://example.org/a?id=7", "https://example.org/a?id=7"),
        ("https://[example.org/a?token=abc", "https://[example.org/a"),
        ("folder/a token=b.jpg", "folder/a token=b.jpg"),
    ],
)
def test_public_url_holds_no_secret(url: str, shown: str) -> None:
    assert public_url(url) == shown


@pytest.mark.parametrize(
    ("url", "wire"),
    [
        ("http://example.org/a.jpg", "http://example.org/a.jpg"),
        (" https://example.org/a b.jpg#part ", "https://example.org/a%20b.jpg"),
        ("https://example.org/%C3%A9?q=é", "https://example.org/%C3%A9?q=%C3%A9"),
        ("https://bücher.example/a", "https://xn--bcher-kva.example/a"),
    ],
)
def test_fetchable_url_is_escaped(url: str, wire: str) -> None:
    assert fetchable_url(url) == wire


@pytest.mark.parametrize(
    "url",
    [
        "",
        "a.jpg",
        "file:///etc/passwd",
        "ftp://example.org/a",
        "http://",
        "http://a:b/",
        "http://[::1/",
        "http://u@a/",
    ],
)
def test_what_is_no_web_address_is_refused(url: str) -> None:
    assert fetchable_url(url) is None


@given(st.text())
def test_no_text_breaks_them(text: str) -> None:
    public_url(f"http://{text}")
    wire = fetchable_url(f"http://{text}")
    assert wire is None or wire.isascii()
