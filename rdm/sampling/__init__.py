"""Sampling: queries, the proposal distribution, context assembly, the pipeline."""

from rdm.sampling.model import RetrievalDiffusionModel
from rdm.sampling.pipeline import Sample, SampleSettings, sample
from rdm.sampling.proposal import Proposal
from rdm.sampling.queries import Query, image_queries, text_queries, unconditional_queries

__all__ = [
    "Proposal",
    "Query",
    "RetrievalDiffusionModel",
    "Sample",
    "SampleSettings",
    "image_queries",
    "sample",
    "text_queries",
    "unconditional_queries",
]
