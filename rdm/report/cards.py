"""Model and dataset cards: Markdown with a YAML header, as model hubs read it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rdm.database.facts import VersionFacts
from rdm.report.data import Command, HeldOutLoss, Metric, recall_of
from rdm.report.html.page import interval, number, signed, signed_interval

NOT_UNLEARNED = (
    "Removing a photograph from the database takes effect at the next lookup. "
    "Trained weights are not unlearned: a network that was trained with it keeps what it learned."
)
_NOTHING_LEFT_OUT = "No picture was left out."


@dataclass(frozen=True)
class DatasetCard:
    """What a dataset card says about one version of a retrieval database.

    `facts` are those of the version, `license_id` is the SPDX-like name of the header (`cc-by-2.0`;
    `other` where there are several), `licenses` counts the photographs under each, `ledger` the
    pictures left out by reason. `credits` says where the photographers are named.
    """

    name: str
    license_id: str
    license_url: str
    source: str
    facts: VersionFacts
    removal_contact: str
    credits: str
    description: str = ""
    licenses: Mapping[str, int] = field(default_factory=dict)
    ledger: Mapping[str, int] = field(default_factory=dict)
    known_gaps: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelCard:
    """What a model card says about one set of trained weights.

    `training` are facts by name, texts that are shown as they are; `license_id` is the SPDX-like
    name of the header.
    """

    name: str
    license_id: str
    recipe: str
    training: Mapping[str, str]
    removal_contact: str
    description: str = ""
    held_out: HeldOutLoss | None = None
    metrics: tuple[Metric, ...] = ()
    limits: tuple[str, ...] = ()
    usage: tuple[Command, ...] = ()


def dataset_card(card: DatasetCard) -> str:
    """Return the card of a retrieval database as Markdown."""
    # The header is YAML that the Hub reads.
    version, recall = card.facts, recall_of(card.facts)
    header = {
        "license": card.license_id,
        "pretty_name": card.name,
        "tags": ["retrieval-database", "image-embeddings"],
        "size_categories": [_size_category(version.photographs)],
    }
    facts = {
        "Photographs": f"{version.photographs:,}",
        "Patches": f"{version.patches:,}",
        "Photographs removed on request": f"{version.removed_photographs:,}",
        "Deleted patches": f"{version.deleted_patches:,}",
        "Embedding": f"{version.embedding_dim} dimensions, float16",
        "Index": _code(version.index),
        "Encoder": _text(version.encoder),
        "Encoder fingerprint": _code(version.encoder_digest),
        "Version": str(version.version),
        "Fingerprint of the source": _code(version.source_fingerprint),
        "Recall@20, 95% interval": f"{number(recall.mean)} ({interval(recall)})",
    }

    # Photographs and patches that the source had and the database has not.
    left_out = [(_text(reason), f"{count:,}") for reason, count in sorted(card.ledger.items())]
    dropped = [
        (f"patch: {_text(reason)}", f"{count:,}")
        for reason, count in sorted(version.dropped_patches.items())
    ]

    # The sections that readers of data cards look for.
    return _document(
        header,
        card.name,
        card.description,
        [
            ("Contents", _facts(facts)),
            (
                "Source and license",
                f"Photographs from {_text(card.source)}{_under(card)}. {_text(card.credits)}",
            ),
            *_licenses(card.licenses),
            (
                "Left out",
                _table(("Reason", "Count"), left_out + dropped)
                if left_out + dropped
                else _NOTHING_LEFT_OUT,
            ),
            ("Known gaps", _bullets(card.known_gaps)),
            ("Removal", _removal(card.removal_contact)),
        ],
    )


def model_card(card: ModelCard) -> str:
    """Return the card of trained weights as Markdown."""
    header = {
        "license": card.license_id,
        "library_name": "diffusers",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["retrieval-augmented-diffusion", card.recipe],
    }

    facts = {"Recipe": card.recipe, **card.training}
    sections = [("Training", _facts({name: _text(value) for name, value in facts.items()}))]
    # A fence that is longer than any in the commands.
    if card.usage:
        lines = "\n".join(_comment(command) + command.line for command in card.usage)
        sections.append(("Usage", f"{_fence(lines)}sh\n{lines}\n{_fence(lines)}"))
    sections.append(("Measurements", _measurements(card.held_out, card.metrics)))
    sections += [("Limits", _bullets(card.limits)), ("Removal", _removal(card.removal_contact))]
    return _document(header, card.name, card.description, sections)


def _document(
    header: Mapping[str, Any], title: str, description: str, sections: Sequence[tuple[str, str]]
) -> str:
    # Every JSON value is a YAML value, so no string of the header can break it.
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in header.items()]
    parts = ["---\n" + "\n".join(lines) + "\n---", f"# {_text(title)}", _text(description)]
    parts += [f"## {heading}\n\n{body}" for heading, body in sections]
    return "\n\n".join(part for part in parts if part) + "\n"


def _measurements(held_out: HeldOutLoss | None, metrics: Sequence[Metric]) -> str:
    parts = []

    # Held-out losses, with their differences below them.
    if held_out is not None:
        rows = [
            (_text(row.name), number(row.loss.mean), interval(row.loss))
            for row in held_out.conditions
        ]
        rows += [
            (_text(row.name), signed(row.estimate.mean), signed_interval(row.estimate))
            for row in held_out.differences
        ]
        parts.append(
            f"Held-out loss ({_text(held_out.loss_name)}), {held_out.num_pictures:,} pictures, "
            f"{held_out.num_draws:,} paired draws of noise and time each. "
            f"{_text(held_out.protocol)}".rstrip()
        )
        parts.append(_table(("Context", "Mean", "95% interval"), rows))

    # Metrics of drawn pictures: what they depend on stands in the row.
    if metrics:
        rows = [
            (
                _text(m.name),
                number(m.value),
                _text(m.feature_network),
                f"{m.num_samples:,}",
                _text(m.reference),
                _text(m.resize),
                _text(m.note),
            )
            for m in metrics
        ]
        parts.append(
            _table(
                ("Metric", "Value", "Feature network", "Samples", "Reference", "Resize", "Note"),
                rows,
            )
        )

    return "\n\n".join(parts) or "Nothing was measured."


def _under(card: DatasetCard) -> str:
    return f", {_text(card.license_id)} (<{_link(card.license_url)}>)" if card.license_url else ""


def _licenses(licenses: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return a section with the photographs under each license, where there are several."""
    if len(licenses) < 2:
        return []
    rows = [
        (_text(name), f"{count:,}")
        for name, count in sorted(licenses.items(), key=lambda item: (-item[1], item))
    ]
    return [("Licenses", _table(("License", "Photographs"), rows))]


def _removal(contact: str) -> str:
    whom = (
        f"write to {_text(contact)}"
        if contact.strip()
        else "ask whoever serves this database: no contact is given"
    )
    return f"To have a photograph removed, {whom}. {NOT_UNLEARNED}"


def _facts(facts: Mapping[str, str]) -> str:
    return _table(("", ""), list(facts.items()))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _bullets(items: Sequence[str]) -> str:
    return "\n".join(f"- {_text(item)}" for item in items) or "None are recorded."


def _text(value: str) -> str:
    """Return text as one line of literal Markdown: no markup, no HTML, no table border."""
    # Names and authors come from strangers' files: a card is rendered on public pages.
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(value.split()))


def _code(value: str) -> str:
    return "`" + " ".join(value.split()).replace("`", "'").replace("|", "\\|") + "`"


def _link(url: str) -> str:
    return re.sub(r"[<>\s]", "", url)


def _fence(lines: str) -> str:
    """Return a code fence longer than any run of backticks inside."""
    return "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", lines)), default=0))


def _comment(command: Command) -> str:
    return f"# {' '.join(command.meaning.split())}\n" if command.meaning else ""


def _size_category(count: int) -> str:
    limits = (
        (1_000, "n<1K"),
        (10_000, "1K<n<10K"),
        (100_000, "10K<n<100K"),
        (1_000_000, "100K<n<1M"),
        (10_000_000, "1M<n<10M"),
        (100_000_000, "10M<n<100M"),
    )
    return next((name for limit, name in limits if count < limit), "n>100M")
