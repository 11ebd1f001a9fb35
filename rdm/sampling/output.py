"""Samples on disk: one PNG each, and `samples.json` that says where every picture came from.

While pictures are drawn, their records are lines of `samples.jsonl`; each line is written after its
PNG, so that a picture with a line is finished. At the end the lines become `samples.json`, one row
a line, whatever their number.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from rdm.database import RetrievalDatabase
from rdm.errors import StorageError, UsageError
from rdm.generators.model_folder import Model
from rdm.generators.sample_settings import SampleSettings
from rdm.sampling.drawing.attribution import overlay
from rdm.sampling.drawing.batches import rows_at_once
from rdm.sampling.drawing.pipeline import Sample
from rdm.sampling.recipe.c2pa_signature import PictureSigner
from rdm.sampling.recipe.picture_file import png_bytes
from rdm.sampling.recipe.record import BatchPlace, Metadata, SampleRecord
from rdm.sampling.recorder import Recorder
from rdm.sampling.request.sample_request import RequestIdentity
from rdm.sampling.retrieval.queries import Query
from rdm.storage import Folder
from rdm.storage.files import storage_errors
from rdm.storage.locks import lock_file

INDEX = "samples.json"
JOURNAL = "samples.jsonl"
REQUEST = "request.json"
GALLERY = "index.html"
CONTACT = "contact.png"
MAPS = "attention"
_LOCK = ".samples.lock"
_PICTURE = re.compile(r"[0-9]{5,}\.png")


def picture_name(number: int) -> str:
    """Return the file name of a picture: `00000.png`, ..."""
    return f"{number:05d}.png"


class SampleFolder:
    """A folder of the pictures of one request, written as they come; use it in a `with` statement.

    Raises:
        UsageError: the folder holds pictures of another request, or of none.
        ConcurrentWriterError: another process is drawing into it.
    """

    def __init__(
        self,
        out: Path,
        identity: RequestIdentity,
        metadata: Metadata = "full",
        signer: PictureSigner | None = None,
    ) -> None:
        self._signer = signer
        self.folder = Folder(out)
        self.metadata: Metadata = metadata
        self.out = out
        self._identity = identity
        # file and offset of each finished picture's record
        self._lines: dict[int, tuple[str, int]] = {}

    def __enter__(self) -> SampleFolder:
        self.folder.make()
        self._lock = lock_file(self.out / _LOCK, "is drawing into this folder")
        try:
            self._claim()
            # Under the lock, or another process's unfinished files would be swept away.
            self.folder.sweep_temporaries()
            self._lines = _finished(self.out)
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def _claim(self) -> None:
        """Write down whose folder this is, or refuse the pictures of another request."""
        # A run goes on in its own folder alone: pictures of two requests could not be told apart.
        if self.folder.exists(REQUEST):
            found = self._read_identity()
            if differing := self._identity.differing(found):
                raise UsageError(
                    "the folder holds the pictures of another request: "
                    f"{', '.join(differing)} differ",
                    where=self.out,
                    fix="give --out a new folder, or delete this one",
                )
            return

        # Never replace files that no request of ours describes.
        known = {INDEX, JOURNAL, GALLERY, CONTACT}
        if taken := [
            name for name in self.folder.names() if name in known or _PICTURE.fullmatch(name)
        ]:
            raise UsageError(
                f"the folder holds files that this command would replace, such as {taken[0]}",
                where=self.out,
                fix="give --out a new folder, or delete these files",
            )
        self.folder.write_json(REQUEST, self._identity.model_dump(mode="json"))

    def _read_identity(self) -> RequestIdentity:
        try:
            return RequestIdentity.model_validate(self.folder.read_json(REQUEST))
        except ValidationError as error:
            raise UsageError(
                f"{REQUEST} is not that of an `rdm sample`",
                where=self.out / REQUEST,
                fix="give --out a new folder, or delete this one",
            ) from error

    def finished(self, number: int) -> bool:
        """Return whether a picture and its record stand."""
        return number in self._lines

    def all_finished(self, numbers: range) -> bool:
        """Return whether all of some pictures stand."""
        return all(map(self.finished, numbers))

    @property
    def num_finished(self) -> int:
        """How many pictures stand."""
        return len(self._lines)

    def add(self, pictures: Sequence[tuple[int, Sample, SampleRecord]]) -> None:
        """Write the pictures that are not there yet, each with its record."""
        with storage_errors(self.out), open(self.out / JOURNAL, "ab") as journal:
            for number, item, record in pictures:
                if number not in self._lines:
                    write_picture(self.folder, item, record, self.metadata, self._signer)
                    self._lines[number] = (JOURNAL, _append_line(journal, record))
            journal.flush()
            # Once for a batch and not for each picture: a sync takes longer than a small PNG.
            os.fsync(journal.fileno())

    def add_maps(
        self,
        samples: Sequence[Sample],
        records: Sequence[SampleRecord],
        maps: NDArray[np.float32],
    ) -> None:
        """Write heat maps [B, L, h, w] of pictures: `attention/00000-0.png` of the first token, ...

        They show the picture, so they carry its recipe as it does.
        """
        for item, record, of_it in zip(samples, records, maps, strict=True):
            for token, heat in enumerate(of_it):
                # One scale for all tokens of a picture, so that they can be compared.
                shown = overlay(item.pixels, heat / max(float(of_it.max()), 1e-9))
                name = f"{MAPS}/{Path(record.file).stem}-{token}.png"
                self.folder.write_bytes(name, png_bytes(shown, record, self.metadata))

    def finish(self) -> None:
        """Write `samples.json`, where it is not there or a picture was drawn again."""
        if self.folder.exists(INDEX) and not self.folder.exists(JOURNAL):
            return
        _write_index(self.out, [self._lines[number] for number in sorted(self._lines)])


def write_picture(
    folder: Folder,
    item: Sample,
    record: SampleRecord,
    metadata: Metadata = "full",
    signer: PictureSigner | None = None,
) -> None:
    """Write a PNG that carries its recipe, and last of all a signature where there is a signer."""
    png = png_bytes(item.pixels, record, metadata)
    folder.write_bytes(record.file, png if signer is None else signer.signed(png, record))


def _append_line(journal: BinaryIO, record: SampleRecord) -> int:
    """Append a record to the journal and return the offset of its line."""
    offset = journal.tell()
    journal.write(record.model_dump_json().encode() + b"\n")
    journal.flush()  # the line of a picture that stands survives a kill
    return offset


def write_samples(
    out: Path,
    samples: Iterable[Sample],
    model: Model,
    database: RetrievalDatabase | None,
    settings: SampleSettings,
) -> int:
    """Write pictures as they come, `samples.json` last, in place of an earlier call's.

    Args:
        out: the folder.
        samples: drawn pictures; taken a batch at a time.
        model: that drew them.
        database: of their neighbors; None of a model without.
        settings: that they were drawn with.
    """
    # An earlier index goes first: a kill must leave no record without its picture.
    folder = Folder(out)
    folder.make()
    for name in (INDEX, JOURNAL):
        folder.delete(name)

    # A record is in the journal only after its picture is on the disk.
    lines: list[tuple[str, int]] = []
    iterator = iter(samples)
    recorder = Recorder(model, {} if database is None else {"": database}, settings)
    with storage_errors(out), open(out / JOURNAL, "ab") as journal:
        while batch := list(islice(iterator, rows_at_once(settings, model.device))):
            names = [picture_name(len(lines) + place) for place in range(len(batch))]
            for item, record in zip(batch, recorder.records(batch, names), strict=True):
                write_picture(folder, item, record)
                lines.append((JOURNAL, _append_line(journal, record)))

    # Pictures of an earlier call have no record any more.
    _write_index(out, lines)
    described = {picture_name(number) for number in range(len(lines))}
    for name in folder.names():
        if _PICTURE.fullmatch(name) and name not in described:
            folder.delete(name)
    return len(lines)


def read_samples(out: Path, limit: int | None = None) -> list[Sample]:
    """Return the first pictures that were written (without the query's embedding); an unfinished
    folder has none."""
    if not (out / INDEX).exists():
        return []

    # Pictures are opened by their names alone: a folder may have moved since.
    samples = []
    for _, row in islice(_rows(out / INDEX), limit):
        with Image.open(out / Path(row["file"]).name) as image:
            pixels = np.asarray(image.convert("RGB"))

        # The query's neighbors as recorded; its embedding was never written.
        ids = np.array([neighbor["patch_id"] for neighbor in row["neighbors"]], np.int64)
        similarities = np.array(
            [neighbor["similarity"] for neighbor in row["neighbors"]], np.float32
        )
        kind, label = row["query"]["kind"], row["query"]["label"]
        query = Query(
            kind,
            label,
            np.zeros(0, np.float32),
            ids,
            similarities,
            weights=tuple(neighbor["weight"] for neighbor in row["neighbors"]),
            databases=tuple(neighbor["database"] for neighbor in row["neighbors"]),
        )
        place = BatchPlace.model_validate(row["batch"])
        samples.append(Sample(query, row["seed"], pixels, place))
    return samples


def stored_records(path: Path) -> Iterator[SampleRecord]:
    """Yield the recipes of `samples.json` or its journal.

    Raises:
        StorageError: a line is no recipe.
    """
    for _, row in _rows(path):
        try:
            yield SampleRecord.model_validate(row)
        except ValidationError as error:
            raise StorageError(
                f"the file is damaged: {error.errors()[0]['msg']}",
                where=path,
                fix="delete the folder and draw again; PNGs carry their records too",
            ) from error


def _finished(out: Path) -> dict[int, tuple[str, int]]:
    """Return where each finished picture's record is; a torn last record is cut off."""
    found: dict[int, tuple[str, int]] = {}
    for name in (INDEX, JOURNAL):
        path = out / name
        if not path.exists():
            continue
        if name == JOURNAL:
            # A killed write leaves no line break: the next record would be glued to it.
            _cut_torn_line(path)
        for offset, row in _rows(path):
            if (out / Path(str(row["file"])).name).is_file():
                found[int(Path(str(row["file"])).stem)] = (name, offset)
    return found


def _cut_torn_line(path: Path) -> None:
    with storage_errors(path), open(path, "rb+") as file:
        data_end = 0
        for line in file:
            if line.endswith(b"\n"):
                data_end += len(line)
        file.truncate(data_end)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (offset, row) of `samples.json` or its journal, a line at a time.

    Raises:
        StorageError: a line is no row.
    """
    offset = 0
    with open(path, "rb") as file:
        for line in file:
            text = line.strip().rstrip(b",")
            if text not in (b"[", b"]", b"[]", b""):
                try:
                    yield offset, json.loads(text)
                except ValueError as error:
                    raise StorageError(
                        f"the file is damaged: {error}",
                        where=path,
                        fix="delete the folder and draw again; PNGs carry their records too",
                    ) from error
            offset += len(line)


def _write_index(out: Path, lines: Sequence[tuple[str, int]]) -> None:
    """Write `samples.json` from records at their places, in flat memory; delete the journal."""
    with Folder(out).writing(INDEX) as temporary, open(temporary, "wb") as target:
        sources = {name: open(out / name, "rb") for name in {name for name, _ in lines}}  # noqa: SIM115
        try:
            for place, (name, offset) in enumerate(lines):
                # Lines are copied as they are: millions of records are never in memory together.
                sources[name].seek(offset)
                line = sources[name].readline().strip().rstrip(b",")
                target.write((b",\n" if place else b"[\n") + line)
            target.write(b"\n]\n" if lines else b"[]\n")
        finally:
            for source in sources.values():
                source.close()
    (out / JOURNAL).unlink(missing_ok=True)
