"""Contrastive image-text learning: symmetric InfoNCE and its measures, as pure functions.

Radford et al. 2021 (CLIP), arXiv 2103.00020, figure 3 and section 3.1.4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LOGIT_SCALE_INIT = math.log(1 / 0.07)
LOGIT_SCALE_MAX = math.log(100.0)


def contrastive_logits(images: Tensor, texts: Tensor, logit_scale: Tensor | float) -> Tensor:
    """Return scaled cosine similarities [num_images, num_texts].

    Args:
        images: [N, D], any length.
        texts: [M, D], any length.
        logit_scale: the logarithm of the factor; clamped so that the factor stays within 100.
    """
    scale = torch.as_tensor(logit_scale).clamp(max=LOGIT_SCALE_MAX).exp()
    return scale * (F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T)


def info_nce(logits: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return the symmetric InfoNCE loss (a scalar) of logits [N, N], true pairs on the diagonal."""
    labels = torch.arange(logits.shape[0], device=logits.device)
    over_texts = F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)
    over_images = F.cross_entropy(logits.float().T, labels, label_smoothing=label_smoothing)
    return (over_texts + over_images) / 2


def zero_shot_classifier(
    encode_texts: Callable[[Sequence[str]], np.ndarray],
    names: Sequence[str],
    templates: Sequence[str] = ("a photo of a {}.",),
) -> np.ndarray:
    """Return a unit vector per class, float32 [num_classes, D]: its prompts' mean unit embedding.

    Args:
        encode_texts: texts to raw embeddings [B, D].
        names: class names.
        templates: prompts with one `{}` for the name.
    """
    prompts = [template.format(name) for name in names for template in templates]
    units = _unit(encode_texts(prompts)).reshape(len(names), len(templates), -1)
    return _unit(units.mean(axis=1))


def top_k_accuracy(
    scores: np.ndarray, labels: np.ndarray, ks: Sequence[int] = (1, 5)
) -> dict[str, float]:
    """Return `{"top1": ..., "top5": ...}` of scores [N, num_classes]; ties count against."""
    ranks = _rank_of(scores, labels)
    return {f"top{k}": float((ranks < k).mean()) for k in ks}


def recall_at_k(
    similarities: np.ndarray, relevant: np.ndarray, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Return the share of queries with a relevant item among the k most similar.

    Ties count against.

    Args:
        similarities: [num_queries, num_items].
        relevant: bool, same shape; every query has at least one relevant item.
        ks: list lengths.
    """
    # Rank of the best relevant item: the other items that are at least as similar.
    best = np.where(relevant, similarities, -np.inf).max(axis=1, keepdims=True)
    ranks = ((similarities >= best) & ~relevant).sum(axis=1)
    return {f"recall@{k}": float((ranks < k).mean()) for k in ks}


def _rank_of(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return how many other classes score at least as high as the true one, [N]."""
    own = scores[np.arange(len(scores)), labels][:, None]
    return (scores >= own).sum(axis=1) - 1


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
