"""`rdm database ...`: every command, and those that describe, check or compact a database."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from rdm.cli.console import DryRunFlag, JsonFlag, show, show_rows
from rdm.cli.database import exchange
from rdm.cli.database.build import build, update
from rdm.cli.database.options import Root
from rdm.cli.database.search import inspect, search


def register(app: App) -> None:
    """Add the commands."""
    database = App(name="database", help="Build, update, search and check a retrieval database.")
    for command in (build, update, changes, compact, search, status, verify, inspect, card):
        database.command(command)
    exchange.register(database)
    app.command(database)


def changes(
    *,
    root: Root,
    since: Annotated[int | None, Parameter(help="a version; by default the one before")] = None,
    version: Annotated[int | None, Parameter(help="a later version; by default the newest")] = None,
    gallery: Annotated[
        Path | None, Parameter(help="write what changed as an HTML page, with the new patches")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Tell what changed from one version to another: added, removed and unusable by cause, index,
    neighbors.

    Example: rdm database changes --root birds --gallery changes.html
    """
    from rdm.database import RetrievalDatabase
    from rdm.database.changes.version_diff import describe_changes
    from rdm.report.html.changes import change_rows, write_changes_page

    database = RetrievalDatabase.open(root)
    found = describe_changes(database.folder, since=since, version=version)
    if gallery is not None:
        write_changes_page(gallery, database, found)
    if json:
        show({"root": root, **found.facts().to_json()}, as_json=True)
    else:
        title = (
            f"from version {found.since} to {found.version}"
            if found.since
            else f"version {found.version}"
        )
        show_rows(
            ["what", "count", "detail"], [list(row.values()) for row in change_rows(found)], title
        )


def compact(*, root: Root, dry_run: DryRunFlag = False, json: JsonFlag = False) -> None:
    """Remove deleted photographs and their vectors from the disk, and drop all older versions.

    Patch ids stay. Readers of older versions cannot go on. Killed anywhere, the same command
    finishes.

    Example: rdm database compact --root birds --dry-run
    """
    from rdm.database.changes.compact import compact_database, compaction_plan

    if dry_run:
        show(
            {"root": root, "would": "compact", **compaction_plan(root).to_json()},
            as_json=json,
            title="plan",
        )
        return
    show({"root": root, **compact_database(root).to_json()}, as_json=json, title="database")


def status(*, root: Root, json: JsonFlag = False) -> None:
    """Say what a database holds: version, counts, encoder, index with its measured recall, query
    sets.

    Example: rdm database status --root birds
    """
    from rdm.database import RetrievalDatabase

    show(RetrievalDatabase.open(root).status().to_json(), as_json=json, title=root)


def verify(
    *,
    root: Root,
    since: Annotated[
        int | None, Parameter(help="read only what an older version does not have too")
    ] = None,
    json: JsonFlag = False,
) -> int:
    """Recompute every digest and invariant, and name the part that broke; exit code 1 where one
    did.

    Example: rdm database verify --root birds
    """
    from rdm.database.verify.verify import verify_database

    findings = verify_database(root, since=since)
    show({"root": root, "ok": not findings, "findings": findings}, as_json=json)
    return 1 if findings else 0


def card(
    *,
    root: Root,
    out: Annotated[Path | None, Parameter(help="a file instead of standard output")] = None,
    contact: Annotated[str, Parameter(help="whom to ask for removal")] = "",
    json: JsonFlag = False,
) -> None:
    """Write the dataset card as Markdown: counts, licenses, authors, failures by cause, gaps, whom
    to ask for removal.

    Example: rdm database card --root birds --contact you@example.org --out README.md
    """
    from rdm.database import RetrievalDatabase
    from rdm.report.database_card import database_card
    from rdm.report.html.page import write_text

    database = RetrievalDatabase.open(root)
    text = database_card(database, contact)

    # Without --out the card is the output.
    if out is not None:
        write_text(out, text)
    if json:
        show(
            {"root": root, "version": database.version.number, "out": out, "card": text},
            as_json=True,
        )
    elif out is None:
        sys.stdout.write(text)
