"""Pictures that clients send as queries: decoded within limits, kept small, for a day."""

from __future__ import annotations

import hashlib
import time
from contextlib import suppress
from pathlib import Path

from PIL import Image

from rdm.config import Record
from rdm.errors import SourceError
from rdm.sampling.recipe.picture_file import read_recipe
from rdm.sampling.recipe.record import SampleRecord
from rdm.serving.problems import ServeError
from rdm.sources import ImageDecodeError, decode_image

_SIDE = 512
_KEEP_SECONDS = 86400.0


class Upload(Record):
    """An upload: its id, its size in pixels, and the record that it carries, if it is ours."""

    id: str
    width: int
    height: int
    record: SampleRecord | None


class Uploads:
    """Uploaded pictures below a folder, by the SHA-256 of what was sent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def add(self, data: bytes) -> Upload:
        """Decode and keep a picture.

        Raises:
            ServeError: the bytes are no picture that can be decoded within the limits.
        """
        try:
            image = decode_image(data)
        except ImageDecodeError as error:
            raise ServeError(
                "not_a_picture", str(error), fix="send a JPEG, PNG, WebP, GIF, BMP or TIFF"
            ) from error

        # Named by its bytes: the same picture is stored once, and never half.
        width, height = image.size
        image.thumbnail((_SIDE, _SIDE))
        name = hashlib.sha256(data).hexdigest()
        temporary = self.folder / f"{name}.tmp"
        image.save(temporary, "PNG")
        temporary.replace(self._path(name))
        return Upload(id=name, width=width, height=height, record=self._record(data))

    def _record(self, data: bytes) -> SampleRecord | None:
        if not data.startswith(b"\x89PNG"):
            return None
        scratch = self.folder / f"{hashlib.sha256(data).hexdigest()}.check"
        try:
            scratch.write_bytes(data)
            return read_recipe(scratch)
        except SourceError:
            return None
        finally:
            scratch.unlink(missing_ok=True)

    def get(self, upload_id: str) -> Image.Image:
        """Return an uploaded picture.

        Raises:
            ServeError: there is none of this id.
        """
        try:
            with Image.open(self._path(upload_id)) as image:
                return image.convert("RGB")
        except FileNotFoundError as error:
            raise ServeError(
                "unknown_upload",
                "there is no such upload, or it is older than a day",
                where="query.image",
                fix="POST the picture to /v1/uploads again",
            ) from error

    def path(self, upload_id: str) -> Path:
        """Return the file of an upload that there is."""
        self.get(upload_id)
        return self._path(upload_id)

    def _path(self, upload_id: str) -> Path:
        return self.folder / f"{upload_id}.png"

    def sweep(self) -> None:
        """Delete what is older than a day."""
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - _KEEP_SECONDS:
                    path.unlink()
