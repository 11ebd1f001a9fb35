"""Classes as an annotation of a latent cache: the number of each photograph's class, and the
classes' names."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rdm.errors import CacheError
from rdm.generators.conditions import LabelConfig
from rdm.sources import QuerySet
from rdm.storage.verified import FileDigest, digest_file
from rdm.training.data.annotation import AnnotationInfo, open_annotation, photographs_of_rows
from rdm.training.data.latent_cache import LatentCache
from rdm.training.data.training_data import ShardRows

INFO_PATH = "classes.json"
TABLE = "classes.parquet"
FORMAT_VERSION = 1
NO_CLASS = -1


class ClassInfo(AnnotationInfo):
    """`classes.json`: the classes, and how many photographs have one."""

    names: tuple[str, ...]
    num_labelled: int
    file: FileDigest


def annotate_classes(cache: str) -> ClassInfo:
    """Write the classes of a cache's query set beside its latents: a table of every photograph that
    has one. Names are sorted, numbers by value.

    Raises:
        CacheError: there is no cache, or fewer than two classes.
        SourceError: the photographs' source has no classes, or a label is damaged.
    """
    latents = LatentCache(cache)
    source = latents.config.queries.source
    said = QuerySet(latents.config.queries).class_names()
    # Photographs that came after the cache was built would add classes that no latent has.
    cached = {image for stem in latents.stems for image in latents.photographs(stem)}
    classes = {image: name for image, name in said.items() if image in cached}
    # Sorted, so that the same photographs always give a class the same number.
    names = sorted(set(classes.values()), key=_by_number)
    if len(names) < 2:
        raise CacheError(
            f"the cache's photographs have {len(names)} classes",
            where=source,
            fix="KEY.cls with the number of a class in tars, or a folder for each class",
        )
    numbers = {name: number for number, name in enumerate(names)}
    table = pa.table(
        {
            "image_id": pa.array(list(classes), pa.string()),
            "label": pa.array([numbers[name] for name in classes.values()], pa.int32()),
        }
    )
    with latents.folder.writing(TABLE) as path:
        pq.write_table(table, path, compression="zstd", write_page_checksum=True)
        digest = digest_file(path)
    info = ClassInfo(
        format_version=FORMAT_VERSION,
        cache_digest=latents.digest,
        names=tuple(names),
        num_labelled=len(classes),
        file=digest,
    )
    latents.folder.write_record(INFO_PATH, info)
    return info


def _by_number(name: str) -> tuple[int, str]:
    # As text, "10" would come before "2", and a class's number could differ from its label.
    return (int(name), name) if name.isdecimal() else (0, name)


@dataclass(frozen=True)
class ClassColumn:
    """`label` int64 [N] of a cache's rows, -1 where a photograph has none.

    Attributes:
        cache: whose rows.
        info: the classes.
    """

    cache: LatentCache
    info: ClassInfo

    @classmethod
    def open(cls, cache: LatentCache, config: LabelConfig) -> ClassColumn:
        """Open the classes of a cache.

        Raises:
            CacheError: it has none, those of other latents, or another number of them.
        """
        fix = f"rdm cache annotate --cache {cache.folder.url} --with classes"
        info = open_annotation(
            cache, INFO_PATH, ClassInfo, what="classes", format_version=FORMAT_VERSION, fix=fix
        )
        if (found := len(info.names)) != config.num_classes:
            raise CacheError(
                f"the cache has {found} classes, the network reads {config.num_classes}",
                where=cache.folder.describe(INFO_PATH),
                fix=f"--set objective.conditions.label.num_classes={found}, and the network's "
                "num_classes",
            )
        return cls(cache, info)

    @cached_property
    def _labels(self) -> dict[str, int]:
        data = self.cache.read(TABLE, self.info.file)
        table = pq.read_table(pa.BufferReader(data))
        return dict(zip(*(table[name].to_pylist() for name in ("image_id", "label")), strict=True))

    def load(self, stem: str, rows: ShardRows) -> dict[str, NDArray[Any]]:
        """See Column.

        Raises:
            CacheError: the table is missing or damaged.
        """
        images, photograph = photographs_of_rows(self.cache, stem)
        # One look-up for each photograph: its many crops and mirror images share the answer.
        known = [self._labels.get(image, NO_CLASS) for image in images]
        return {"label": np.array(known, np.int64)[photograph[rows.rows]]}
