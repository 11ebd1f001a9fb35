"""Credits: the photographs that pictures were drawn from, as a text that CC BY asks for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rdm.config import Config
from rdm.sampling.recipe.record import Credit, SampleRecord
from rdm.sources.source import Author

CREDITS = "credits.txt"
_ABOUT = (
    "A network drew these pictures while it looked at patches of the photographs below. The\n"
    "photographs were cropped and encoded for that; none of them is shown as it is.\n"
)


class Photograph(Config):
    """A photograph to credit; texts are empty where its database does not know them."""

    image_id: str
    title: str
    author: str
    license: str
    license_url: str
    url: str
    landing_page: str


def photographs_of(records: Iterable[SampleRecord]) -> list[Photograph]:
    """Return the photographs that conditioned pictures, each once, in the order of their use."""
    found: dict[tuple[str, ...], Photograph] = {}
    for record in records:
        for credit in record.looked_at:
            found.setdefault(identity_of(credit), _photograph(credit))
    return list(found.values())


def identity_of(credit: Credit) -> tuple[str, ...]:
    """Return what is the same for all patches of a photograph: its bytes, else its id."""
    return (credit.sha256,) if credit.sha256 else (credit.database, credit.image_id)


def _photograph(credit: Credit) -> Photograph:
    return Photograph(**{name: getattr(credit, name) for name in Photograph.model_fields})


def credit_line(photograph: Photograph) -> str:
    """Return title, author, source and license of a photograph, each with its address."""
    title = f'"{photograph.title}"' if photograph.title else f"Photograph {photograph.image_id}"
    author = photograph.author or "an author whom the source does not name"
    page = photograph.landing_page or photograph.url
    source = f", {page}" if page else ""
    license = photograph.license or "license not stated"
    if photograph.license_url and photograph.license_url != photograph.license:
        license += f" ({photograph.license_url})"
    return f"{title} by {author}{source}, {license}"


def credits_text(records: Iterable[SampleRecord], listed: Sequence[Author] = ()) -> str:
    """Return the credits of pictures, a line a photograph.

    Args:
        records: of the pictures.
        listed: authors whom a source names in one list that is not linked to single photographs;
            they are named where a photograph has no author of its own.
    """
    photographs = photographs_of(records)
    if not photographs:
        return "These pictures were drawn without photographs to look at.\n"
    lines = [_ABOUT, *(credit_line(one) for one in photographs)]
    if listed and any(not one.author for one in photographs):
        lines += [
            "\nThe source of the photographs without an author names the authors of all its",
            "photographs in one list, in which theirs are:\n",
            *(f"{author.name}, {author.url}" if author.url else author.name for author in listed),
        ]
    return "\n".join(lines) + "\n"
