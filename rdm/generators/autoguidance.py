"""What a model and a weaker one must share, so that one can be led away from the other."""

from __future__ import annotations

from pathlib import Path

from rdm.errors import UsageError
from rdm.generators.generator import GeneratorConfig
from rdm.generators.provenance import Provenance


def require_shared(
    ours: tuple[GeneratorConfig, Provenance],
    theirs: tuple[GeneratorConfig, Provenance],
    where: Path,
) -> None:
    """Refuse a model that another one cannot be led away from.

    Raises:
        UsageError: it works on another space, reads other conditions, or learned on another
            schedule.
    """
    facts, others = shared_facts(*ours), shared_facts(*theirs)
    if differing := [name for name, fact in facts.items() if others[name] != fact]:
        raise UsageError(
            f"the model for autoguidance differs in {' and '.join(differing)}",
            where=where,
            fix="give an earlier checkpoint of the same run, or a smaller model of the same "
            "recipe and cache",
        )


def shared_facts(config: GeneratorConfig, provenance: Provenance) -> dict[str, object]:
    """Return what must be equal in both models, by the name that a message calls it."""
    head, read = config.head, config.conditions
    neighbors = read.neighbors
    return {
        "the space": config.space,
        "the first stage": provenance.latents_digest,
        "the shape of what it draws": tuple(config.network.sample_shape),
        "the head": head.kind,
        "the schedule": getattr(head, "schedule", None),
        "the prediction type": head.loss_kind,
        "the conditions": read.sources,
        "the scale of neighbors": neighbors
        and (neighbors.embedding, neighbors.scale, neighbors.mean_vector),
        "the classes": read.label and (read.label.num_classes, provenance.class_names),
        "the text": read.text and (read.text.encoder, read.text.length, read.text.scale),
        "the encoder": provenance.encoder_digest,
        "the text network": provenance.text_encoder_digest,
    }
