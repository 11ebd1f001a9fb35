"""The models that a server draws with, as their folders describe them: networks lie in drawers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rdm.config import Record
from rdm.generators.model_folder import INFO, ModelInfo, read_info
from rdm.models.assets import named_folder
from rdm.serving.databases import OpenDatabase
from rdm.serving.problems import ServeError
from rdm.serving.settings import Named


@dataclass(frozen=True)
class KnownModel:
    """A model's description.

    Attributes:
        name: as requests say.
        place: `assets://NAME` or a folder.
        directory: the folder.
        info: its `model.json`.
    """

    name: str
    place: str
    directory: Path
    info: ModelInfo

    def refusal(self, opened: OpenDatabase) -> str:
        """Return why the model does not draw from a database; empty where it does."""
        database = opened.database
        if not self.info.reads_neighbors or database.encoder_digest == self.info.encoder_digest:
            return ""
        return (
            f"{self.name} was trained with {self.info.encoder} {self.info.encoder_digest}, "
            f"{opened.name} holds {database.encoder_name} {database.encoder_digest}"
        )


class ModelFacts(Record):
    """A model as clients see it."""

    id: str
    object: str = "model"
    owned_by: str = "retrieval-diffusion"
    width: int
    height: int
    sources: tuple[str, ...]
    encoder: str | None
    databases: tuple[str, ...]
    """Databases that it draws from."""


class Models:
    """The models by name.

    Raises:
        RdmError: one has no readable description, or reads what a server cannot be asked.
    """

    def __init__(self, named: Sequence[Named]) -> None:
        self._known: dict[str, KnownModel] = {}
        for one in named:
            directory = named_folder(one.place, INFO, "model")
            self._known[one.name] = KnownModel(one.name, one.place, directory, read_info(directory))

    @property
    def all(self) -> tuple[KnownModel, ...]:
        """The models, in the order that they were given in."""
        return tuple(self._known.values())

    def get(self, name: str | None) -> KnownModel:
        """Return a model, by default the first.

        Raises:
            ServeError: there is none of the name, or none at all.
        """
        if name is None and self._known:
            return next(iter(self._known.values()))
        if name is None or name not in self._known:
            raise ServeError(
                "unknown_model",
                "no model is served" if name is None else f"there is no model {name[:64]!r}",
                where="model",
                fix=f"one of: {', '.join(self._known) or 'start the server with --model NAME=DIR'}",
            )
        return self._known[name]

    def refusals(self, opened: OpenDatabase) -> dict[str, str]:
        """Return why each model does not draw from a database; empty where it does."""
        return {model.name: model.refusal(opened) for model in self._known.values()}

    def facts(self, model: KnownModel, databases: Sequence[OpenDatabase]) -> ModelFacts:
        """Return a model as clients see it."""
        side = model.info.resolution
        return ModelFacts(
            id=model.name,
            width=side or 0,
            height=side or 0,
            sources=model.info.generator.conditions.read,
            encoder=model.info.encoder,
            databases=tuple(one.name for one in databases if not model.refusal(one)),
        )


def check_model(model: KnownModel, opened: OpenDatabase | None) -> None:
    """Raise ServeError where a model cannot draw from a database."""
    if opened is not None and (reason := model.refusal(opened)):
        raise ServeError(
            "encoder_mismatch",
            reason,
            where=opened.name,
            fix="choose a database of the model's encoder",
        )
