"""Encoders measured: retrieval between photographs and captions, zero-shot classification."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from rdm.encoders import Encoder, normalize
from rdm.encoders.contrastive_loss import recall_at_k, top_k_accuracy, zero_shot_classifier
from rdm.errors import SourceError
from rdm.sources.photographs.decode import decode_image
from rdm.sources.tar_members import iterate_files, picture_of, split_name
from rdm.training.data.contrastive_features import read_captioned_tar

_BATCH = 64


def evaluate_encoder(
    encoder: Encoder, tars: Sequence[Path], keys: Collection[str]
) -> dict[str, float]:
    """Return recall at 1, 5 and 10 of retrieval in both directions, and the number of photographs.

    Every caption is a query among the photographs, and every photograph a query among the captions,
    of which any of its own counts.

    Args:
        encoder: the encoder to measure.
        tars: WebDataset tars with captions.
        keys: which photographs take part: those that no training and no choice has seen.

    Raises:
        SourceError: a tar is damaged, or a key is in none of them.
    """
    wanted = set(keys)
    photos = [photo for path in tars for photo in read_captioned_tar(path) if photo.key in wanted]
    if len(photos) != len(wanted):
        missing = sorted(wanted - {photo.key for photo in photos})
        raise SourceError(
            f"{len(missing)} photographs are in no tar, the first is {missing[0]!r}",
            fix="name the tars that the keys were taken from",
        )

    # Several captions may belong to one photograph: `relevant` [captions, photographs].
    images = _embed_images(encoder, (photo.image for photo in photos))
    texts = normalize(
        encoder.encode_texts([caption for photo in photos for caption in photo.captions])
    )
    owners = np.repeat(np.arange(len(photos)), [len(photo.captions) for photo in photos])
    relevant = owners[:, None] == np.arange(len(photos))[None]

    similarities = texts @ images.T
    forward, backward = recall_at_k(similarities, relevant), recall_at_k(similarities.T, relevant.T)
    return {
        "num_photos": float(len(photos)),
        **{f"text_to_image_{name}": value for name, value in forward.items()},
        **{f"image_to_text_{name}": value for name, value in backward.items()},
    }


def evaluate_zero_shot(
    encoder: Encoder,
    tars: Sequence[Path],
    names: Sequence[str],
    *,
    per_class: int | None = None,
    templates: Sequence[str] = ("a photo of a {}.",),
) -> dict[str, float]:
    """Return top-1 and top-5 accuracy of naming labelled photographs, and their number.

    Args:
        encoder: the encoder to measure.
        tars: WebDataset tars with `KEY.cls`, a number into `names`.
        names: class names.
        per_class: use only the first so many photographs of each class.
        templates: prompts with one `{}`.

    Raises:
        SourceError: a tar is damaged or holds no labelled photograph.
    """
    # The first of each class, in the order of the tars: the same ones each time.
    taken = np.zeros(len(names), np.int64)
    images: list[bytes] = []
    labels: list[int] = []
    for image, label in _labelled(tars):
        if per_class is None or taken[label] < per_class:
            taken[label] += 1
            images.append(image)
            labels.append(label)

    if not labels:
        raise SourceError(
            "the tars hold no photograph with a label",
            where=", ".join(map(str, tars)),
            fix="every sample needs KEY.jpg and KEY.cls",
        )

    classes = zero_shot_classifier(encoder.encode_texts, names, templates)
    scores = _embed_images(encoder, iter(images)) @ classes.T
    return {"num_photos": float(len(labels)), **top_k_accuracy(scores, np.array(labels))}


def _embed_images(encoder: Encoder, images: Iterator[bytes]) -> np.ndarray:
    # An empty first part, so that no pictures give an array without rows.
    rows, batch = [np.zeros((0, encoder.embedding_dim), np.float32)], []
    for image in images:
        batch.append(encoder.preprocess(decode_image(image)))
        if len(batch) == _BATCH:
            rows.append(encoder.encode_images(np.stack(batch)))
            batch = []
    if batch:
        rows.append(encoder.encode_images(np.stack(batch)))
    return normalize(np.concatenate(rows))


def _labelled(tars: Sequence[Path]) -> Iterator[tuple[bytes, int]]:
    for path in tars:
        members: dict[str, dict[str, bytes]] = {}
        for name, data in iterate_files(path):
            key, ending = split_name(name)
            members.setdefault(key, {})[f".{ending.lower()}"] = data
        for files in members.values():
            image = picture_of(files)
            if image is not None and ".cls" in files:
                yield image, int(files[".cls"])
