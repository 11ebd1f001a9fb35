"""What a model can be asked."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rdm.database import RetrievalDatabase
from rdm.errors import UsageError
from rdm.generators.model_folder import ModelInfo
from rdm.sampling.request.sample_request import QueryKind

_OPTIONS: dict[QueryKind, str] = {
    "image": "--image",
    "text": "--text",
    "class": "--class",
    "patch": "--patch",
    "neighbors": "--neighbor",
    "unconditional": "--unconditional",
}


def check_asked(
    info: ModelInfo,
    database: RetrievalDatabase | None,
    kinds: Collection[QueryKind],
    classes: Sequence[str] = (),
) -> None:
    """Refuse what a model cannot be asked.

    Args:
        info: of the model that draws.
        database: where neighbors are looked up.
        kinds: of the queries.
        classes: that are asked for by name.

    Raises:
        UsageError: the model does not read what a query says, it has no such class, or there is no
            database for one that reads neighbors.
        EncoderMismatchError: database and model do not belong to the same encoder.
    """
    by_neighbors = info.reads_neighbors
    heard: dict[QueryKind, bool] = {
        "image": by_neighbors,
        "text": by_neighbors or info.reads_text,
        "class": by_neighbors or bool(info.known_classes),
        "patch": by_neighbors,
        "neighbors": by_neighbors,
        "unconditional": True,
    }

    # Drawing would go on and ignore the query: refused, with the options that would be heard.
    if unheard := [name for kind, name in _OPTIONS.items() if kind in kinds and not heard[kind]]:
        options = [name for kind, name in _OPTIONS.items() if heard[kind]]
        raise UsageError(
            f"the model was trained on {' and '.join(info.sources) or 'no condition'}, so "
            f"{unheard[0]} cannot tell it anything",
            where=unheard[0],
            fix=f"{', '.join(options)}, or a model of another recipe",
        )

    # A model that reads neighbors knows a class by its prompts, whatever its name.
    known = info.known_classes
    if known and (unknown := [name for name in classes if name not in known]):
        raise UsageError(
            f"the model has no class {unknown[0]!r}",
            where="class",
            fix=f"--class with one of: {', '.join(known)}",
        )

    # One that is given has to fit, also where the model could do without.
    if database is not None:
        info.check_database(database)
    elif by_neighbors:
        raise no_database()


def no_database() -> UsageError:
    """Return the error of a model that reads neighbors and has nowhere to look them up."""
    return UsageError(
        "the model reads neighbors, so it needs a database to look them up in", fix="--database DIR"
    )
