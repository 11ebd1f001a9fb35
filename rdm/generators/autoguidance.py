"""What a model and a weaker one must share, so that one can be led away from the other."""

from __future__ import annotations

from rdm.generators.generator import GeneratorConfig
from rdm.generators.provenance import Provenance


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
