"""The Prefect server that flows would use here, asked before they need it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rdm.errors import MissingDependencyError, RdmError, UsageError
from rdm.homes import is_writable

if TYPE_CHECKING:
    from prefect.settings import Settings

TIMEOUT_SECONDS = 5.0
_OWN = "`rdm quickstart` needs no server of yours"


@contextmanager
def prefect_errors(url: str) -> Iterator[None]:
    """Turn what Prefect's client raises of a server that cannot be used into three lines.

    Raises:
        RdmError: no answer, an answer that refuses, or a proxy or certificate that cannot be used.
    """
    import httpx

    try:
        yield
    except httpx.HTTPStatusError as error:
        code = error.response.status_code
        raise RdmError(
            f"the Prefect server refuses with status {code}",
            where=url,
            fix="check PREFECT_API_AUTH_STRING or PREFECT_API_KEY"
            if code in (401, 403)
            else "is this the address of a Prefect server, with /api at its end?",
        ) from error
    # ImportError: a SOCKS proxy without its package; ValueError: a proxy of another kind; OSError:
    # certificates.
    except (httpx.HTTPError, RuntimeError, ImportError, ValueError, OSError) as error:
        proxies = sorted(
            name
            for name in os.environ
            if name.lower() in ("http_proxy", "https_proxy", "all_proxy")
        )
        # Proxies of a kind that the client does not know stop it whatever NO_PROXY says.
        unusable = isinstance(error, ImportError | ValueError)
        mend = "unset it" if unusable else "a NO_PROXY with the server's name passes it by"
        through = f"; {', '.join(proxies)} is set: {mend}" if proxies else ""
        raise RdmError(
            f"the Prefect server cannot be reached: {str(error) or type(error).__name__}",
            where=url,
            fix=f"prefect server start, or correct PREFECT_API_URL{through}",
        ) from error


def load_settings() -> Settings:
    """Return the Prefect settings in force, which are read when Prefect is first imported.

    Raises:
        MissingDependencyError: Prefect is not installed, or not as it should be.
        UsageError: a variable, file or profile cannot be understood.
    """
    try:
        from prefect.settings import get_current_settings

        return get_current_settings()
    except ImportError as error:
        raise MissingDependencyError(
            f"Prefect cannot be imported: {error}", fix="pip install 'retrieval-diffusion[flows]'"
        ) from error
    except Exception as error:  # each reader of settings has errors of its own
        raise UsageError(
            f"Prefect's settings cannot be read: {' '.join(str(error).split())[:200]}",
            fix="correct PREFECT_* variables, .env, prefect.toml, pyproject.toml or the "
            f"profile; {_OWN}",
        ) from error


def check_flows() -> tuple[bool, str, str]:
    """Return whether flows can run under these Prefect settings, which, and how to mend them.

    Raises:
        UsageError: the settings cannot be read.
    """
    settings = load_settings()
    if settings.api.url is not None:
        return _check_server(settings.api.url)

    # Without a server of one's own each run starts a temporary one.
    if not settings.server.ephemeral.enabled:
        return (
            False,
            "no Prefect server: PREFECT_API_URL is not set, and temporary ones are switched off",
            f"prefect server start, then export PREFECT_API_URL=http://127.0.0.1:4200/api; {_OWN}",
        )

    home = Path(settings.home)
    if not is_writable(home):
        return False, f"Prefect cannot write its home {home}", f"export PREFECT_HOME=DIR; {_OWN}"
    return True, f"no PREFECT_API_URL: a temporary server in {home} for each run", ""


def _check_server(url: str) -> tuple[bool, str, str]:
    from prefect.client.orchestration import get_client

    try:
        with (
            prefect_errors(url),
            get_client(httpx_settings={"timeout": TIMEOUT_SECONDS}, sync_client=True) as client,
        ):
            client.read_work_pools(limit=1)
    except RdmError as error:
        return False, f"{error.what} ({url})", f"{error.fix}; {_OWN}"
    return True, f"the Prefect server at {url} answers", ""
