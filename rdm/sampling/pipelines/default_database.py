"""The database that a model was saved with, by its address."""

from __future__ import annotations

import os
from pathlib import Path

from rdm.compute.device import DeviceName
from rdm.database import RetrievalDatabase
from rdm.errors import DatabaseError
from rdm.generators.model_folder import Model
from rdm.generators.provenance import DefaultDatabase
from rdm.sampling.recorder import database_reference


def default_database_of(database: RetrievalDatabase, model_directory: Path) -> DefaultDatabase:
    """Return a database's address for a model's folder: of local ones the way from there."""
    url = database.folder.url
    if "://" not in url:
        url = os.path.relpath(url, model_directory)
    reference = database_reference(database)
    return DefaultDatabase(url=url, version=reference.version, digest=reference.digest)


def open_default_database(model: Model, device: DeviceName) -> dict[str, RetrievalDatabase]:
    """Return the database that a model was saved with, by its place; none if there was none.

    Raises:
        DatabaseError: there is none at the address, or it is no longer the same.
    """
    noted = model.info.default_database
    if noted is None:
        return {}

    # A model and its database move together: an address without a scheme is relative.
    url = noted.url
    if "://" not in url:
        url = os.path.normpath(model.directory.absolute() / url)
    database = RetrievalDatabase.open(url, device=device)

    # An earlier version is not opened: it has photographs that were removed since.
    found = database_reference(database)
    if found.digest != noted.digest:
        raise DatabaseError(
            f"the model was saved with version {noted.version} {noted.digest} of the database, "
            f"which is at version {found.version} {found.digest} now",
            where=url,
            fix=f"name it, if that is meant: database={url!r}",
        )
    return {url: database}
