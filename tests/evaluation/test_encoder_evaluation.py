import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from rdm.encoders import EncoderFingerprint
from rdm.encoders.protocol import to_square
from rdm.errors import SourceError
from rdm.evaluation.encoder import evaluate_encoder, evaluate_zero_shot

COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class ColorEncoder:
    """Embeds a picture as its mean color, and a text as the color that it names."""

    fingerprint = EncoderFingerprint(
        name="colors",
        architecture="mean",
        weights_digest="0" * 16,
        activation="none",
        image_size=8,
        interpolation="bilinear",
        crop="squash",
        mean=(0, 0, 0),
        std=(1, 1, 1),
        pooling="average",
        embedding_dim=3,
    )
    embedding_dim = 3

    def preprocess(self, image: Image.Image) -> np.ndarray:
        return to_square(image, self.fingerprint)

    def encode_images(self, batch: Tensor | np.ndarray) -> np.ndarray:
        return np.asarray(batch, np.float32).mean(axis=(2, 3))

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        return np.array(
            [next(rgb for name, rgb in COLORS.items() if name in text) for text in texts],
            np.float32,
        )


def write_tar(path: Path, named: Sequence[str]) -> Path:
    """Write one picture per color of COLORS, with the color's number and a caption that names the
    given one."""
    with tarfile.open(path, "w") as tar:
        for number, ((color, rgb), name) in enumerate(zip(COLORS.items(), named, strict=True)):
            picture = io.BytesIO()
            Image.new("RGB", (16, 16), rgb).save(picture, "JPEG")
            captions = json.dumps({"captions": [f"something {name}"]}).encode()
            for ending, data in (
                ("jpg", picture.getvalue()),
                ("json", captions),
                ("cls", str(number).encode()),
            ):
                member = tarfile.TarInfo(f"{color}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def test_encoder_that_is_always_right_recalls_everything(tmp_path: Path) -> None:
    metrics = evaluate_encoder(
        ColorEncoder(), [write_tar(tmp_path / "a.tar", list(COLORS))], list(COLORS)
    )
    assert metrics["num_photos"] == 3.0
    assert metrics["text_to_image_recall@1"] == metrics["image_to_text_recall@1"] == 1.0


def test_wrong_captions_are_counted(tmp_path: Path) -> None:
    metrics = evaluate_encoder(
        ColorEncoder(), [write_tar(tmp_path / "a.tar", ["red", "blue", "green"])], list(COLORS)
    )
    assert metrics["text_to_image_recall@1"] == pytest.approx(1 / 3)


def test_only_the_given_photographs_take_part(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", ["red", "blue", "green"])
    assert evaluate_encoder(ColorEncoder(), [tar], ["red"])["num_photos"] == 1.0


def test_photograph_that_is_in_no_tar_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="the first is 'violet'"):
        evaluate_encoder(
            ColorEncoder(), [write_tar(tmp_path / "a.tar", list(COLORS))], ["red", "violet"]
        )


def test_class_names_classify(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", list(COLORS))
    assert evaluate_zero_shot(ColorEncoder(), [tar], list(COLORS)) == {
        "num_photos": 3.0,
        "top1": 1.0,
        "top5": 1.0,
    }


def test_no_more_than_the_given_number_per_class_is_used(tmp_path: Path) -> None:
    tars = [write_tar(tmp_path / name, list(COLORS)) for name in ("a.tar", "b.tar")]
    assert evaluate_zero_shot(ColorEncoder(), tars, list(COLORS), per_class=1)["num_photos"] == 3.0


def test_tar_without_labels_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    with pytest.raises(SourceError, match="no photograph with a label"):
        evaluate_zero_shot(ColorEncoder(), [tmp_path / "empty.tar"], ["red"])


def test_labels_of_folders_and_of_hidden_members_are_kept_apart(tmp_path: Path) -> None:
    members = {
        "./red/0.jpg": (255, 0, 0),
        "./red/0.cls": b"0",
        "./._0.jpg": b"\0\5\x16\7",
        "./._0.cls": b"x",
    }
    members |= {"./blue/0.jpg": (0, 0, 255), "./blue/0.cls": b"1"}
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, value in members.items():
            buffer = io.BytesIO()
            if isinstance(value, bytes):
                buffer.write(value)
            else:
                Image.new("RGB", (8, 8), value).save(buffer, "JPEG")
            member = tarfile.TarInfo(name)
            member.size = buffer.tell()
            buffer.seek(0)
            tar.addfile(member, buffer)
    found = evaluate_zero_shot(ColorEncoder(), [tmp_path / "a.tar"], ["red", "blue"])
    assert (found["num_photos"], found["top1"]) == (2, 1.0)
