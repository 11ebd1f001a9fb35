"""What the routes share: the service, the settings, and how far the server has started."""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from rdm.serving.databases import Databases
from rdm.serving.jobs.service import JobService
from rdm.serving.metrics import Metrics
from rdm.serving.models import Models
from rdm.serving.settings import ServeSettings

_CLIENT = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass
class Serving:
    """A running server.

    Attributes:
        settings: of the server.
        service: its jobs.
        models: by name.
        databases: by name.
        metrics: its numbers.
        boot: random, of this process: event ids carry it.
        failure: why the server cannot start.
        thumbs: encoded patches by database, patch, size, and whether it is the photograph.
    """

    settings: ServeSettings
    service: JobService
    models: Models
    databases: Databases
    metrics: Metrics
    boot: str
    failure: Exception | None = None
    thumbs: OrderedDict[tuple[str, int, int, bool], bytes] = field(default_factory=OrderedDict)

    @property
    def status(self) -> str:
        """`starting`, `ready` or `draining`."""
        if self.service.is_draining:
            return "draining"
        is_open = len(self.databases.all) == len(self.databases.names)
        is_drawing = self.service.dispatch.is_ready or not self.models.all
        return "ready" if is_open and is_drawing else "starting"


def client_of(request: Request, given: str | None = None) -> str:
    """Return whose turn a request takes in the queue: the page's session, else the address."""
    name = given or request.headers.get("rdm-client", "")
    if _CLIENT.fullmatch(name):
        return name
    return f"address {request.client.host if request.client else ''}"


def serving_of(request: Request) -> Serving:
    """Return the server that a request came to."""
    return request.app.state.serving


ServingDep = Annotated[Serving, Depends(serving_of)]
