"""Jobs that were looked up already, without a database."""

from __future__ import annotations

import numpy as np

from rdm.sampling.retrieval.conditioning import Conditioning, Tokens
from rdm.sampling.retrieval.queries import Query
from rdm.serving.jobs.records import Job, new_id
from rdm.serving.lookup import Found
from rdm.serving.request import JobRequest


def made_job(
    client: str, seeds: str = "0", *, k: int = 4, draft: bool = False, steps: int = 10
) -> Job:
    """Return a job whose pictures wait to be drawn."""
    request = JobRequest.model_validate(
        {
            "texts": ["an owl"],
            "seeds": seeds,
            "supersede": draft,
            "settings": {"k": k, "num_steps": steps},
        }
    )
    nothing = np.zeros(0, np.float32)
    query = Query("text", "an owl", nothing, np.zeros(0, np.int64), nothing)
    tokens = Tokens(np.zeros((k, 16), np.float32), ("patch",) * k, np.ones(k, np.float32))
    asked = tuple(Conditioning(query, seed, tokens) for seed in request.seed_list)
    found = Found(request, {}, asked, ((),) * len(asked), 1.0)
    return Job(new_id("job"), client, request, found=found)
