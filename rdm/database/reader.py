"""`RetrievalDatabase`: one pinned version of a database, to search and to look things up in."""

# pyright: reportAttributeAccessIssue=false
# pyarrow ships no types for the functions that it makes at run time.

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image

from rdm.compute.device import DeviceName, compute_device
from rdm.database.contract import (
    METADATA_COLUMNS,
    ORIGIN_COLUMNS,
    PATCH_SCHEMA,
    index_place,
    query_set_of,
)
from rdm.database.embedding_parts import gather, open_embeddings
from rdm.database.facts import DatabaseStatus, VersionFacts, version_facts
from rdm.database.patch_record import PatchRecord
from rdm.database.pixels import iterate_patches, read_photograph
from rdm.database.search.approximate import approximate_candidates, open_index
from rdm.database.search.exact import (
    blocks_of,
    canonical_similarities,
    exact_search,
    quantize,
    rank,
)
from rdm.encoders import Encoder, load_encoder
from rdm.errors import DatabaseError, EncoderMismatchError, UsageError
from rdm.sources.kinds.imported import is_imported
from rdm.storage import Folder, Version, VersionStore
from rdm.storage.atomic import read_error

logger = logging.getLogger(__name__)


class RetrievalDatabase:
    """A reader of one version. Later versions do not disturb it: parts are immutable."""

    def __init__(self, folder: Folder, version: Version, device: DeviceName = "cpu") -> None:
        self.folder = folder
        self.version = version
        self.device: DeviceName = device

    @classmethod
    def open(
        cls, root: str, *, version: int | None = None, device: DeviceName = "cpu"
    ) -> RetrievalDatabase:
        """Open a database at its current version, or at a given one.

        Args:
            root: folder or URL.
            version: None: the current one.
            device: what its encoder computes on, for queries.

        Raises:
            DatabaseError: the root is no retrieval database, or has no such version.
        """
        folder = Folder(root)
        return cls(folder, VersionStore(folder).require(version), device)

    @property
    def encoder_name(self) -> str:
        """The name of the encoder that made the embeddings, such as `assets://encoder-lite`."""
        return self.version.encoder.name

    @property
    def encoder_digest(self) -> str:
        """The digest of that encoder's fingerprint."""
        return self.version.encoder.digest

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder that made the embeddings, loaded and compared with the recorded fingerprint.

        Raises:
            EncoderMismatchError: the encoder of that name is no longer the same.
            DeviceError: its device is `cuda`, and there is no GPU.
        """
        encoder = load_encoder(self.encoder_name, device=str(compute_device(self.device)))
        self.check_encoder(encoder)
        return encoder

    def check_encoder(self, encoder: Encoder) -> None:
        """Raise EncoderMismatchError unless an encoder is the one that made the embeddings."""
        if (found := encoder.fingerprint.digest()) == self.encoder_digest:
            return

        # Name what differs: a fingerprint of two digests would leave the user guessing.
        recorded = self.version.encoder.fingerprint
        current = encoder.fingerprint.model_dump(mode="json")
        differing = [name for name in current if current[name] != recorded.get(name)]

        raise EncoderMismatchError(
            f"the database was built with another encoder ({', '.join(differing) or 'fingerprint'} "
            f"differ): {self.encoder_name} {self.encoder_digest}, not {found}",
            where=self.folder.url,
            fix="use the encoder that built it, or build a new database with this one",
        )

    @property
    def has_pixels(self) -> bool:
        """Whether photographs are stored; a database of embeddings computed elsewhere has none."""
        return not is_imported(self.version.source)

    @cached_property
    def tombstones(self) -> NDArray[np.int64]:
        """The sorted ids of deleted patches."""
        return self.version.tombstone_ids()

    @cached_property
    def parts(self) -> list[tuple[int, NDArray[np.float16]]]:
        """`(first patch id, memory-mapped vectors [N, dim])` of each embedding part."""
        return open_embeddings(
            self.folder, self.version.parts_of("embeddings"), self.version.embedding_dim
        )

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.array([first for first, _ in self.parts], np.int64)

    @cached_property
    def _index(self) -> faiss.Index | None:
        """The version's index; None if the version is old and its index was dropped."""
        place = index_place(self.version)

        # Only the newest versions keep an index: an older one is searched exactly.
        is_dropped = not self.folder.exists(place)
        if is_dropped and VersionStore(self.folder).require().number > self.version.number:
            logger.warning(
                "version %d has no index any more: comparing with every vector", self.version.number
            )
            return None
        return open_index(self.folder, place, self.version.index)

    def search_vectors(
        self,
        queries: NDArray[np.floating],
        k: int,
        *,
        exact: bool = False,
        excluded: NDArray[np.int64] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the nearest living patches' ids [B, k] and similarities [B, k], best first.

        Ties are ordered by id.

        Args:
            queries: unit vectors [B, dim]; they are rounded to float16, as stored vectors are.
            k: how many.
            exact: compare with every vector instead of asking the index. The similarities are the
                same either way.
            excluded: ids of patches that may not be found; None: deleted ones alone.

        Raises:
            UsageError: k is under 1, or so much is excluded that fewer than k patches are left.
            DatabaseError: the database has fewer than k living patches, or the dimension differs.
        """
        # Refuse what has no answer.
        if k < 1:
            raise UsageError(f"{k} is no number of neighbors", fix="give -k a number of 1 or more")
        if queries.shape[1] != self.version.embedding_dim:
            raise DatabaseError(
                f"queries have {queries.shape[1]} dimensions, the database "
                f"{self.version.embedding_dim}",
                where=self.folder.url,
                fix="use the encoder that built the database",
            )
        if k > self.version.num_live_patches:
            raise DatabaseError(
                f"k = {k}, but the database has {self.version.num_live_patches} patches",
                where=self.folder.url,
                fix="ask for fewer neighbors, or add photographs",
            )

        hidden = self.tombstones
        if excluded is not None and len(excluded):
            self._check_ids(np.asarray(excluded, np.int64))
            hidden = np.union1d(hidden, excluded)
            if (left := self.version.next_patch_id - len(hidden)) < k:
                raise UsageError(
                    f"{k} neighbors are asked for, but what is excluded leaves {left} of "
                    f"{self.version.num_live_patches} patches",
                    where=self.folder.url,
                    fix="exclude less, ask for fewer neighbors, or add photographs",
                )

        # Both ways score by the canonical similarity, so an approximate answer differs only in
        # members.
        vectors = quantize(queries)
        if exact or self._index is None:
            return exact_search(vectors, blocks_of(self.parts), k, excluded=hidden)
        return self._approximate(self._index, vectors, k, hidden)

    def _approximate(
        self,
        index: faiss.Index,
        queries: NDArray[np.float16],
        k: int,
        hidden: NDArray[np.int64],
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Ask the index for candidates, and put them in order by their exact similarities."""
        candidates = approximate_candidates(index, queries, k)

        # The probed lists may hold fewer than k vectors, or some that are excluded: such rows are
        # searched exactly.
        short = np.flatnonzero(((candidates < 0) | np.isin(candidates, hidden)).any(axis=1))
        if len(short):
            candidates[short] = exact_search(
                queries[short], blocks_of(self.parts), k, excluded=hidden
            )[0]

        # Candidates are scored as exact search scores them, and ordered by (similarity, id).
        similarities = canonical_similarities(queries, self.embeddings(candidates))
        order = np.stack(
            [rank(ids, row, k) for ids, row in zip(candidates, similarities, strict=True)]
        )
        return np.take_along_axis(candidates, order, 1), np.take_along_axis(similarities, order, 1)

    def embeddings(self, patch_ids: NDArray[np.integer]) -> NDArray[np.float16]:
        """Return the unit vectors [..., dim] of patches [...], by arithmetic on the memory maps.

        Raises:
            DatabaseError: an id was never given out.
        """
        flat = np.asarray(patch_ids, np.int64).ravel()
        self._check_ids(flat)
        return gather(self.parts, flat).reshape(*np.shape(patch_ids), self.version.embedding_dim)

    def patch_rows(self, patch_ids: NDArray[np.integer]) -> pa.Table:
        """Return the patches' rows (patches and metadata joined), in the order of the ids."""
        flat = np.asarray(patch_ids, np.int64).ravel()
        self._check_ids(flat)

        # Part by part; without ids the first part gives the columns.
        owner = np.searchsorted(self._starts, flat, side="right") - 1
        patches, metadata = self.version.parts_of("patches"), self.version.parts_of("metadata")
        tables, positions = [], []
        for part in np.unique(owner) if len(flat) else [0]:
            rows = np.flatnonzero(owner == part)
            local = flat[rows] - self.parts[part][0]
            left = self._table(patches[part].path, PATCH_SCHEMA.names).take(local)
            right = self._table(metadata[part].path, METADATA_COLUMNS).take(local)

            for column in METADATA_COLUMNS:
                left = left.append_column(column, right.column(column))
            tables.append(left)
            positions.append(rows)

        # Back into the order of the ids.
        order = np.argsort(np.concatenate(positions), kind="stable")
        return pa.concat_tables(tables).take(order)

    def _table(self, path: str, required: Sequence[str]) -> pa.Table:
        """Return all columns of a Parquet part. A missing column means that it is damaged."""
        table = self.folder.read_table(path)
        if missing := set(required) - set(table.column_names):
            raise read_error(
                ValueError(f"it has no column {min(missing)}"), self.folder.describe(path)
            )
        return table

    def patches_where(
        self, column: str, values: Sequence[str], *, deleted: bool = False
    ) -> NDArray[np.int64]:
        """Return the sorted ids of living patches whose column has one of some values.

        Args:
            column: `image_id`, `author` or `license`.
            values: texts, compared whole.
            deleted: deleted ones too, those that a compaction has not emptied.
        """
        kind = "patches" if column in PATCH_SCHEMA.names else "metadata"
        parts = [
            self.folder.read_table(part.path, columns=[column])
            for part in self.version.parts_of(kind)
        ]
        texts = pa.concat_tables(parts).column(column)
        found = pc.is_in(texts, value_set=pa.array(list(values), texts.type))
        # A patch's id is its row in the parts, counted in order.
        ids = np.flatnonzero(found.to_numpy())
        return ids if deleted else np.setdiff1d(ids, self.tombstones)

    def similarities(
        self, queries: NDArray[np.floating], patch_ids: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Return the similarities [B, k] of unit vectors [B, dim] to patches [B, k], as searches
        return them."""
        return canonical_similarities(quantize(queries), self.embeddings(patch_ids))

    def require_living(self, patch_ids: NDArray[np.integer]) -> None:
        """Raise DatabaseError for a patch that was never there, or was deleted."""
        self._check_ids(np.asarray(patch_ids, np.int64).ravel())
        self._refuse_deleted(patch_ids)

    def records(self, patch_ids: NDArray[np.integer]) -> list[PatchRecord]:
        """Return the records of patches; raise DatabaseError for a deleted one."""
        # A compaction has emptied the rows of deleted patches.
        self._refuse_deleted(patch_ids)
        return [
            PatchRecord(
                patch_id=row["patch_id"],
                image_id=row["image_id"],
                **{name: row[name] for name in ORIGIN_COLUMNS},
                box=(row["x0"], row["y0"], row["x1"], row["y1"]),
            )
            for row in self.patch_rows(patch_ids).to_pylist()
        ]

    def pixels(self, patch_ids: NDArray[np.integer]) -> list[Image.Image]:
        """Return the patches' pixels, cut from their photographs now.

        Raises:
            DatabaseError: a patch was deleted, or the pixels are not stored.
        """
        self._refuse_deleted(patch_ids)
        if not np.size(patch_ids):
            return []
        return list(iterate_patches(self.folder, self.patch_rows(patch_ids)))

    def photograph(self, patch_id: int) -> Image.Image:
        """Return the whole photograph that a patch was cut from.

        Raises:
            DatabaseError: the patch was deleted, or the pixels are not stored.
        """
        self._refuse_deleted(np.array([patch_id]))
        row = self.patch_rows(np.array([patch_id])).to_pylist()[0]
        return read_photograph(self.folder, row["image_shard"], row["image_row"])

    def living_ids(self) -> NDArray[np.int64]:
        """Return the ids of all patches that are not deleted, ascending."""
        return np.setdiff1d(np.arange(self.version.next_patch_id, dtype=np.int64), self.tombstones)

    def facts(self) -> VersionFacts:
        """Return the facts of the version."""
        return version_facts(self.version)

    def status(self) -> DatabaseStatus:
        """Return the facts that `rdm database status` shows."""
        facts = dict(self.facts())
        return DatabaseStatus(
            **facts,
            root=self.folder.url,
            versions=VersionStore(self.folder).numbers(),
            index_facts=self.version.index,
            query_sets=sorted(
                {query_set_of(part.path) for part in self.version.parts_of("queryset")}
            ),
        )

    def _refuse_deleted(self, patch_ids: NDArray[np.integer]) -> None:
        deleted = np.intersect1d(np.asarray(patch_ids, np.int64), self.tombstones)
        if len(deleted):
            raise DatabaseError(
                f"patch {deleted[0]} was deleted",
                where=self.folder.url,
                fix="search again: no search finds it",
            )

    def _check_ids(self, flat: NDArray[np.int64]) -> None:
        if len(flat) and not (flat.min() >= 0 and flat.max() < self.version.next_patch_id):
            raise DatabaseError(
                f"patch ids run from 0 to {self.version.next_patch_id - 1}; asked for "
                f"{flat.min()}..{flat.max()}",
                where=self.folder.url,
                fix="the ids belong to another database, or to a later version",
            )
