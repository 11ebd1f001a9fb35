"""Names of models and databases, and the token."""

from __future__ import annotations

from pathlib import Path

import pytest

from rdm.errors import UsageError
from rdm.serving.settings import Named, parse_named, read_token

TOKEN = "a-token-of-more-than-sixteen"


def token_file(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "token"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_name_may_be_given_or_is_the_last_part_of_the_place() -> None:
    found = parse_named(["birds=/data/db", "/data/paintings/"], "--database")
    assert found == (
        Named(name="birds", place="/data/db"),
        Named(name="paintings", place="/data/paintings/"),
    )


@pytest.mark.parametrize("text", ["", "=x", "a b=x", "../x=y", "birds=", "-x=y"])
def test_what_names_nothing_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="names nothing"):
        parse_named([text], "--database")


def test_a_name_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="twice"):
        parse_named(["a=x", "a=y"], "--model")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_loopback_needs_no_token(host: str) -> None:
    assert read_token(None, host) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "server.example", ""])
def test_any_other_host_does(host: str) -> None:
    with pytest.raises(UsageError, match="no token protects"):
        read_token(None, host)


def test_a_token_is_read_without_its_newline(tmp_path: Path) -> None:
    assert read_token(token_file(tmp_path, f"{TOKEN}\n"), "0.0.0.0") == TOKEN


@pytest.mark.parametrize("text", ["", "short", "two words of many letters", "ünïcode-ünïcode-ünï"])
def test_a_weak_token_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="no line of 16"):
        read_token(token_file(tmp_path, text), "127.0.0.1")


def test_a_token_that_others_may_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="may read the token"):
        read_token(token_file(tmp_path, TOKEN, 0o644), "127.0.0.1")


def test_a_token_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_token(tmp_path / "none", "127.0.0.1")
