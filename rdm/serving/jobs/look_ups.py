"""Look-ups of clients: names become models and databases, within the limits, in threads."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from rdm.sampling.request.sample_request import WeightedDatabase
from rdm.serving.databases import Databases, OpenDatabase
from rdm.serving.lookup import Found, look_up
from rdm.serving.metrics import Metrics
from rdm.serving.models import KnownModel, Models, check_model
from rdm.serving.problems import ServeError
from rdm.serving.request import JobRequest, LookUpRequest
from rdm.serving.settings import Limits
from rdm.serving.uploads import Uploads


class LookUps:
    """Resolves requests and looks them up; it draws nothing.

    Attributes:
        models: by name.
        databases: by name.
        uploads: query pictures by their ids.
        limits: of one request.
        metrics: that count.
    """

    def __init__(
        self,
        models: Models,
        databases: Databases,
        uploads: Uploads,
        limits: Limits,
        metrics: Metrics,
    ) -> None:
        self.models, self.databases, self.uploads = models, databases, uploads
        self.limits, self.metrics = limits, metrics
        self._threads = ThreadPoolExecutor(2, "lookup")

    def resolve(self, request: LookUpRequest) -> tuple[KnownModel | None, dict[str, OpenDatabase]]:
        """Return the model and the databases of a request, with their defaults.

        Raises:
            ServeError: one does not exist, is not open yet, or they do not belong together.
        """
        model = self.models.get(request.model) if request.model or self.models.all else None
        names = [one.name for one in request.retrieval.databases]

        # Without names: a database that fits the model, where it reads one.
        if not names and model is not None and not model.info.reads_neighbors:
            return model, {}
        if not names:
            fitting = [one for one in self.databases.all if not model or not model.refusal(one)]
            names = [next((one.name for one in fitting), next(iter(self.databases.names), ""))]

        # Each must belong to the model, at the version that is served.
        opened = {name: self.databases.get(name) for name in names}
        for one in opened.values():
            if model is not None:
                check_model(model, one)
        for wanted in request.retrieval.databases:
            if wanted.version not in (None, opened[wanted.name].version):
                raise ServeError(
                    "version_gone",
                    f"version {wanted.version} of {wanted.name} is asked for, "
                    f"{opened[wanted.name].version} is served",
                    where="retrieval.databases",
                    fix="leave the version out",
                )

        self._refuse_removed(request, opened)
        return model, opened

    def _refuse_removed(self, request: LookUpRequest, opened: dict[str, OpenDatabase]) -> None:
        """Raise ServeError where a request names a patch that was removed, or never was."""
        first = next(iter(opened))
        retrieval = request.retrieval
        negative = retrieval.negative.patches if retrieval.negative else ()
        for patch in (*request.patches, *retrieval.include, *retrieval.weights, *negative):
            name, _, number = patch.rpartition(":")
            if (name or first) in opened:
                opened[name or first].refuse_removed([int(number)])

    async def neighbors(self, request: LookUpRequest) -> Found:
        """Look up without drawing."""
        self._check_size(request)
        model, opened = self.resolve(request)
        return await self.look_up(model, opened, request)

    async def look_up(
        self,
        model: KnownModel | None,
        opened: dict[str, OpenDatabase],
        request: LookUpRequest,
    ) -> Found:
        """Look up a request that was resolved, in a thread."""
        info = model and model.info

        def work() -> Found:
            return look_up(info, opened, request, self.uploads.get)

        found = await asyncio.get_running_loop().run_in_executor(self._threads, work)
        self.metrics.lookup_seconds.observe(found.milliseconds / 1000)
        return found

    def resolved(self, request: JobRequest) -> JobRequest:
        """Return a request with its defaults filled in, within the limits."""
        self._check_size(request)
        if not self.models.all:
            self.models.get(None)
        for upload in request.images:
            self.uploads.get(upload)
        model, opened = self.resolve(request)
        named = request.retrieval.databases or tuple(WeightedDatabase(name=n) for n in opened)
        retrieval = request.retrieval.model_copy(update={"databases": named})
        return request.model_copy(update={"model": model and model.name, "retrieval": retrieval})

    def _check_size(self, request: LookUpRequest) -> None:
        """Raise ServeError for more than one request may ask for."""
        limits, steps, count = self.limits, request.settings.num_steps, len(request.seed_list)
        asked = {"pictures": (count, limits.max_images), "steps": (steps, limits.max_steps)}
        for what, (number, most) in asked.items():
            if number > most:
                raise ServeError(
                    "invalid_request",
                    f"{number} {what} are asked for, at most {most} are allowed",
                    where="seeds" if what == "pictures" else "settings.num_steps",
                    fix="ask for fewer",
                )

    def close(self) -> None:
        """Let go of threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)
