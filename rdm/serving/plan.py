"""What a server would load, for `--dry-run`."""

from __future__ import annotations

from pathlib import Path

from rdm.database import RetrievalDatabase
from rdm.serving.models import Models
from rdm.serving.settings import Named, ServeSettings


def serving_plan(settings: ServeSettings, *, is_demo: bool) -> dict[str, object]:
    """Return what a server would load, and which database a model refuses and why.

    Args:
        settings: of the server.
        is_demo: databases that are missing would be built.

    Raises:
        RdmError: a model or a database cannot be opened.
    """
    models = Models(settings.models)
    databases = {one.name: _database(one, models, is_demo) for one in settings.databases}
    return {
        "address": f"http://{settings.host}:{settings.port}/",
        "token": "wanted" if settings.token else "none: loopback only",
        "device": settings.device,
        "data": str(settings.data),
        "models": {one.name: _bytes_of(one.directory) for one in models.all},
        "databases": databases,
        "limits": settings.limits.model_dump(mode="json"),
    }


def _bytes_of(directory: Path) -> dict[str, object]:
    files = [path.stat().st_size for path in directory.rglob("*") if path.is_file()]
    return {"directory": str(directory), "num_bytes": sum(files)}


def _database(named: Named, models: Models, is_demo: bool) -> dict[str, object]:
    if is_demo and not (Path(named.place) / "manifest.json").exists():
        return {"root": named.place, "would": "be built"}

    # A server would refuse these models later: a plan says so at once.
    database = RetrievalDatabase.open(named.place)
    digest = database.encoder_digest
    refused = [
        f"{model.name} was trained with {model.info.encoder}, this holds {database.encoder_name}"
        for model in models.all
        if model.info.reads_neighbors and model.info.encoder_digest != digest
    ]
    facts = database.facts()
    return {
        "root": named.place,
        "version": facts.version,
        "photographs": facts.photographs,
        "patches": facts.patches,
        "num_bytes": facts.num_bytes,
        "refused": refused,
    }
