"""Options that several commands of `rdm database` share."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

Root = Annotated[str, Parameter(name="--root", help="the database's folder or URL")]
