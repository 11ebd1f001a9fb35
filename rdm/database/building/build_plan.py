"""The plan of one build or update, as a value: its start, its changes, where its parts go."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

from rdm.database.building.checks import SHOWN, delisted
from rdm.database.building.results import PlanFacts
from rdm.database.changes.holdings import Holdings
from rdm.database.changes.plan import SourceDiff, UpdatePlan
from rdm.database.contract import embeddings_path, image_paths
from rdm.database.settings import BuildConfig, has_changed
from rdm.encoders import Precision, fastest_precision, load_encoder
from rdm.sources.photographs.boxes import Boxes
from rdm.storage import EncoderRecord, Folder, Version


@dataclass(frozen=True, eq=False)
class BuildPlan:
    """The plan of a run: its start, a version or nothing, and its changes.

    Args:
        folder: of the database.
        parent: the version that the run starts from.
        config: the settings of the version that it makes.
        changes: the additions and deletions.
        boxes: in the crop mode of that name, the boxes of the source's photographs.
    """

    folder: Folder
    parent: Version | None
    config: BuildConfig
    changes: UpdatePlan
    boxes: Boxes | None = None

    def with_changes(self, changes: UpdatePlan) -> BuildPlan:
        """Return the plan after a stage has learned more of what it changes."""
        return replace(self, changes=changes)

    def trial(self, root: str, num_photographs: int) -> BuildPlan:
        """Return the plan of a small database of the first new photographs, to measure its stages.

        It accepts any number of failures: the estimate reports them itself.
        """
        folder, rows = Folder(root), self.changes.diff.new_rows.slice(0, num_photographs)
        config = self.config.model_copy(update={"min_success_rate": 0.0})

        # A trial has no parent: whatever it stores is new.
        return BuildPlan(
            folder, None, config, UpdatePlan(SourceDiff(Holdings(folder, None), rows)), self.boxes
        )

    def facts(self) -> PlanFacts:
        """Return the size of the change in photographs and patches, and what left the list."""
        diff, gone = self.changes.diff, delisted(self.changes.diff, self.config)
        known = diff.is_known_source

        # Where the source is known nothing came or went, and the ledgers need not be read.
        return PlanFacts(
            changed=not self.is_current,
            photographs=diff.listing.num_rows,
            new=0 if known else diff.new_rows.num_rows,
            gone=0 if known else len(self.changes.gone_images),
            gone_patches=0 if known else len(self.changes.newly_dead),
            delisted=len(gone) or None,
            first_delisted=gone[:SHOWN] or None,
        )

    @property
    def is_current(self) -> bool:
        """Whether the parent already holds exactly what the source has, with these settings."""
        return (
            self.parent is not None
            and self.changes.is_empty
            and not has_changed(self.config, self.parent)
        )

    @property
    def number(self) -> int:
        """The number of the version that the run makes."""
        return self.parent.number + 1 if self.parent else 1

    @property
    def first_new_part(self) -> int:
        """The number of the first new part of patches and embeddings."""
        return len(self.parent.parts_of("patches")) if self.parent else 0

    @property
    def first_new_patch(self) -> int:
        """The id of the first new patch."""
        return self.parent.next_patch_id if self.parent else 0

    @property
    def new_stems(self) -> list[str]:
        """The names of the new image shards."""
        first = len(self.parent.parts_of("images")) if self.parent else 0
        # Rounded up: the last shard may be smaller.
        count = -(-self.changes.diff.new_rows.num_rows // self.config.images_per_shard)
        return [f"{first + number:05d}" for number in range(count)]

    @property
    def new_parts(self) -> list[int]:
        """The numbers of the new parts of patches and embeddings, one for each new image shard."""
        return [self.first_new_part + number for number in range(len(self.new_stems))]

    @property
    def new_ledgers(self) -> list[str]:
        """The paths of the ledgers of the new image shards."""
        return [image_paths(stem)[1] for stem in self.new_stems]

    @property
    def embedding_paths(self) -> tuple[str, ...]:
        """The paths of all embedding parts after the run, in the order of their rows."""
        old = self.parent.parts_of("embeddings") if self.parent else []
        return (*(part.path for part in old), *map(embeddings_path, self.new_parts))

    @property
    def precision(self) -> Precision:
        """All vectors of a database are made in one precision: that of its first build."""
        if self.parent is not None:
            return cast(Precision, self.parent.encoder.precision)
        if self.config.precision == "auto":
            return fastest_precision(self.config.encoder)
        return self.config.precision

    def encoder_record(self) -> EncoderRecord:
        """Return the encoder as a version records it.

        An update takes the parent's record, with which the encoder was compared; a removal does not
        even load the encoder.
        """
        if self.parent is not None:
            return self.parent.encoder.model_copy(
                update={"name": self.config.encoder, "precision": self.precision}
            )

        fingerprint = load_encoder(self.config.encoder).fingerprint
        return EncoderRecord(
            name=self.config.encoder,
            digest=fingerprint.digest(),
            precision=self.precision,
            fingerprint=fingerprint.model_dump(mode="json"),
        )

    def embedding_dim(self) -> int:
        """Return the length of a vector."""
        if self.parent is not None:
            return self.parent.embedding_dim
        return load_encoder(self.config.encoder).embedding_dim
