"""A request for a database: to be built from a source, or brought up to date with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa

from rdm.database.building.build_plan import BuildPlan
from rdm.database.building.checks import check_left, check_settings, check_vanished
from rdm.database.changes.holdings import Holdings
from rdm.database.changes.plan import Removal, SourceDiff, UpdatePlan
from rdm.database.reader import RetrievalDatabase
from rdm.database.settings import BuildConfig
from rdm.encoders import load_encoder
from rdm.errors import SourceError
from rdm.sources import open_source
from rdm.sources.kinds.imported import is_imported
from rdm.sources.open import open_boxes
from rdm.sources.photographs.boxes import Boxes
from rdm.storage import Folder, Version, VersionStore

__all__ = ["BuildConfig", "DatabaseBuilder"]


@dataclass(frozen=True)
class DatabaseBuilder:
    """A request for one build or update of the database at a root.

    `plan` compares the source with the database, `run_build` carries the plan out.

    A build of a finished database with the same configuration and an unchanged source does nothing.
    When the source has changed, what is new gets new image shards and patch ids, and the patches of
    photographs that vanished or were replaced become tombstones. With other settings, where they
    are not fixed, there is a new version with them.

    Args:
        root: folder of the database.
        config: the settings.
        removal: what goes for good.
        retry_failed: ask again for photographs that failed by a cause that may have passed.
        only_delete: leave the source alone.
    """

    root: str
    config: BuildConfig
    removal: Removal = Removal()
    retry_failed: bool = False
    only_delete: bool = False

    @property
    def folder(self) -> Folder:
        """The folder of the database."""
        return Folder(self.root)

    @property
    def store(self) -> VersionStore:
        """The versions of the database."""
        return VersionStore(self.folder)

    def plan(self) -> BuildPlan:
        """Compare the source with the current version, and return what a run would do.

        Raises:
            DatabaseError: the root holds something else, a fixed setting differs, or no patch would
                be left.
            EncoderMismatchError: the encoder is another one than that of the stored vectors.
            SourceError: the source is empty, or lacks most of what the database has.
        """
        folder, parent = self.folder, self.store.current()
        found, boxes = self._listing(parent)
        if found is not None and found.num_rows == 0:
            raise SourceError(
                "the source is empty", where=self.config.source, fix="check the specification"
            )

        # All further stages are functions of this value.
        diff = SourceDiff(Holdings(folder, parent), found, self.removal, self.retry_failed)
        plan = BuildPlan(folder, parent, self.config, UpdatePlan(diff), boxes)
        check_plan(plan)
        return plan

    @contextmanager
    def writing(self, planned: BuildPlan | None = None) -> Iterator[BuildPlan]:
        """Hold the writer's lock, and yield the plan of the run.

        Args:
            planned: the plan that was made before the lock was held; another one is made where
                another writer has committed since.

        Raises:
            ConcurrentWriterError: another process is writing the database.
            DatabaseError, EncoderMismatchError, SourceError: see `plan`.
        """
        with self.store.writer():
            holds = planned is not None and planned.parent == self.store.current()
            yield planned if planned is not None and holds else self.plan()

    def _listing(self, parent: Version | None) -> tuple[pa.Table | None, Boxes | None]:
        """Return the source's listing, and its boxes if patches are boxes; None if left alone."""
        # What was imported has no source that could be listed.
        if parent is not None and (self.only_delete or is_imported(self.config.source)):
            return None, None

        source = open_source(self.config.source)
        boxes = open_boxes(source, self.config.boxes) if self.config.crop.mode == "boxes" else None
        table = source.listing()
        return table if boxes is None else boxes.annotate(table), boxes


def check_plan(plan: BuildPlan) -> None:
    """Refuse what cannot become the next version.

    Raises:
        DatabaseError: a fixed setting differs, or no patch would be left.
        EncoderMismatchError: the encoder is another one than that of the stored vectors.
        SourceError: the source lacks most of what the database has.
    """
    # A first build has nothing to contradict.
    if plan.parent is None:
        return
    check_settings(plan.folder, plan.parent, plan.config)

    check_vanished(plan.changes.diff, plan.config)
    facts = plan.facts()

    # Only new vectors must fit the stored ones: a removal works without the encoder at hand.
    if facts.new or plan.config.encoder != plan.parent.encoder.name:
        RetrievalDatabase(plan.folder, plan.parent).check_encoder(load_encoder(plan.config.encoder))

    if not facts.new:
        check_left(plan.folder, plan.parent.num_live_patches - facts.gone_patches)
