"""Recognition of samples, photographs and mosaics by a judge that training never used.

Each sample is conditioned on pictures of one class that no training has seen. The headline is the
judge's top-1 of samples divided by its top-1 of the first stage's reconstructions, which are the
ceiling of every sample.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from rdm.compute.device import DeviceName, compute_device, describe_device
from rdm.config import digest_json
from rdm.encoders import Encoder
from rdm.errors import SourceError, StorageError, UsageError
from rdm.evaluation.metrics.fidelity import LEAST, Fidelity, fidelity
from rdm.evaluation.recognition.identification import (
    LEAST_CONTEXTS,
    Identification,
    identify,
)
from rdm.evaluation.recognition.judges import LITE2_POOLED, ImageNetJudge, Judge, LinearProbe
from rdm.evaluation.recognition.labelled import PictureSet, mosaic
from rdm.evaluation.recognition.planned_samples import (
    PlannedDraw,
    SamplePlan,
    class_plan,
    embed,
    model_encoder,
    nearest_plan,
)
from rdm.evaluation.recognition.recognition_record import (
    FORMAT,
    Recognition,
    RecognitionConfig,
    RecognitionInputs,
    RecognitionRow,
    ratio_of,
    recognition_row,
    sample_rows,
)
from rdm.evaluation.recognition.sample_grid import GridRow, draw_grid
from rdm.evaluation.recognition.stored_features import (
    NETWORKS,
    FeatureStore,
    NetworkName,
    StoredArrays,
)
from rdm.generators.model_folder import Model, open_model
from rdm.models.first_stage.first_stage import FirstStage, to_uint8
from rdm.storage import Folder
from rdm.storage.locks import lock_file

RESULT = "recognition.json"
GRID = "grid.png"
_MOSAICS = (16, 8)
_PERCENTILES = (25, 50, 75)
_PER_PERCENTILE = 4
_LOCK = ".recognition.lock"


def evaluate_recognition(
    inputs: RecognitionInputs, config: RecognitionConfig, out: Path, device: DeviceName = "auto"
) -> Recognition:
    """Measure and write `recognition.json` and `grid.png`; finished parts are not repeated.

    Args:
        inputs: model, pictures, classes and judge.
        config: how much is drawn and measured.
        out: folder of the results and of finished parts.
        device: what networks compute on.

    Raises:
        UsageError: the model reads no neighbors; a judge is not given what it needs.
        SourceError: pictures are broken, or too few.
        EncoderMismatchError: the encoder is not the model's.
        DeviceError: the device is `cuda`, and there is no GPU.
        ConcurrentWriterError: another process is measuring into the folder.
    """
    used = compute_device(device)
    model = open_model(inputs.model, used)
    if not model.reads_neighbors:
        fix = "give a model of a recipe with neighbors"
        raise UsageError(
            "the model reads no neighbors, so nothing tells it a class", where=inputs.model, fix=fix
        )

    pictures = PictureSet(inputs.pictures)
    folder = Folder(out)
    folder.make()

    # Finished parts lie in the folder, so two processes would write over each other.
    with lock_file(out / _LOCK, "is measuring into this folder"):
        bench = _Bench(inputs, config, model, pictures, folder, used)
        if (found := _read(folder)) is not None and found.key == bench.key and folder.exists(GRID):
            return found
        result = bench.measure()
        folder.write_json(RESULT, result.model_dump(mode="json"))
    return result


def _read(folder: Folder) -> Recognition | None:
    if not folder.exists(RESULT):
        return None
    try:
        return Recognition.model_validate(folder.read_json(RESULT))
    except (StorageError, ValidationError):
        return None  # of another format, or damaged: measured again from what stands


class _Bench:
    """One measurement: its inputs, opened."""

    def __init__(
        self,
        inputs: RecognitionInputs,
        config: RecognitionConfig,
        model: Model,
        pictures: PictureSet,
        folder: Folder,
        device: torch.device,
    ) -> None:
        self.inputs, self.config, self.model = inputs, config, model
        self.pictures, self.folder, self.device = pictures, folder, device
        self.side: int = model.info.resolution or 0
        self.arrays = StoredArrays(folder)
        self.features = FeatureStore(self.arrays, device)
        probe = None if inputs.probe_pictures is None else PictureSet(inputs.probe_pictures)
        self.probe_pictures = probe

        # Everything that decides the numbers.
        self.key = digest_json(
            [
                FORMAT,
                config.model_dump(mode="json"),
                model.digest,
                [item.model_dump(mode="json") for item in inputs.classes],
                [inputs.judge, inputs.pictures, pictures.digest, pictures.labels.tolist()],
                None if probe is None else [probe.digest, probe.labels.tolist()],
            ]
        )

    def measure(self) -> Recognition:
        """Draw, judge and compare."""
        inputs, config, model = self.inputs, self.config, self.model
        judge = self._judge() if inputs.classes else None
        plan, embeddings = self._plan(model_encoder(model, inputs.encoder, str(self.device)))
        draw = PlannedDraw(
            model, plan, embeddings, config.settings, config.seed, self.pictures.digest
        )
        samples = draw.samples(self.arrays)

        # Recognition of classes.
        rows: tuple[RecognitionRow, ...] = ()
        confidence = None
        if judge is not None and plan.labels is not None:
            scores = self._scores(judge, "samples", draw.digest, samples)
            # The judge's probability of the context's class, not of the likeliest one.
            confidence = np.exp(scores[np.arange(len(scores)), plan.labels])
            rows = (
                *self._anchors(judge),
                *sample_rows(scores, plan.labels, len(inputs.classes), config.seed),
            )

        # Identification of contexts, and what to look at.
        identification, own = self._identification(plan, draw.digest, samples)
        self._write_grid(plan, samples, own if confidence is None else confidence)
        return Recognition(
            key=self.key,
            model=str(inputs.model),
            model_digest=model.digest,
            pictures=self.pictures.spec,
            pictures_digest=self.pictures.digest,
            num_samples=len(samples),
            seed=config.seed,
            settings=model.acting(config.settings),
            judge=None if judge is None else self._judge_in_words(judge),
            num_classes=len(inputs.classes) or None,
            rows=rows,
            ratio=ratio_of(rows),
            identification=identification,
            identification_features=f"{NETWORKS['lite2']}, pooled",
            fidelity=self._fidelity(draw.digest, samples) if config.distances else {},
            device=describe_device(self.device),
        )

    def _plan(self, encoder: Encoder) -> tuple[SamplePlan, NDArray[np.float32]]:
        """Return the plan and the raw embeddings of its pictures."""
        config, k = self.config, self.config.settings.k
        if self.inputs.classes:
            rows = self.pictures.rows_of_classes(len(self.inputs.classes))
            plan = class_plan(rows, config.per_class, k, config.seed)
            _check_number(plan)
            return plan, embed(self.arrays, encoder, self.pictures, plan.rows)
        embeddings = embed(self.arrays, encoder, self.pictures, np.arange(len(self.pictures)))
        plan = nearest_plan(embeddings, config.num_queries, k)
        _check_number(plan)
        return plan, embeddings[plan.rows]

    @property
    def _network(self) -> NetworkName:
        return "lite2" if self.inputs.judge == "imagenet" else "inception"

    def _judge(self) -> Judge:
        inputs, classes = self.inputs, self.inputs.classes
        # A network of ImageNet knows classes by their `wnid`, and needs no fitting.
        if inputs.judge == "imagenet":
            if unnamed := [item.name for item in classes if item.wnid is None]:
                fix = "--judge probe --probe-pictures SPEC, or classes with `wnid`"
                raise UsageError(
                    f"{len(unnamed)} classes have no `wnid`, first {unnamed[0]!r}", fix=fix
                )
            return ImageNetJudge([item.wnid or "" for item in classes])

        if self.probe_pictures is None:
            fix = (
                "--probe-pictures webdataset://TRAINING, labelled pictures that are not measured on"
            )
            raise UsageError("a probe needs labelled pictures to be fitted to", fix=fix)

        # A probe that saw what it judges would flatter every picture.
        probe, side = self.probe_pictures, self.side
        if shared := set(probe.image_ids) & set(self.pictures.image_ids):
            raise SourceError(
                f"{len(shared)} pictures are to be fitted to and measured on, such as "
                f"{min(shared)!r}",
                where=probe.spec,
                fix="give --probe-pictures others than --pictures",
            )

        # As many of each class, by the run's seed; the features are kept by what decides them.
        rows = _drawn_rows(
            probe.rows_of_classes(len(classes)), self.config.probe_per_class, self.config.seed
        )
        key = digest_json([probe.digest, rows.tolist(), side])
        features = self.features.features("inception", "probe", key, probe.squares(rows, side))
        return LinearProbe.fit(features, probe.labels[rows], len(classes), self.config.seed)

    def _judge_in_words(self, judge: Judge) -> str:
        network = NETWORKS[self._network]
        if not isinstance(judge, LinearProbe):
            return f"{network}, logits of {len(self.inputs.classes)} classes"
        return (
            f"linear probe on {network}, fitted to {judge.num_rows} pictures of "
            f"{self.inputs.probe_pictures}, "
            f"validation accuracy {judge.validation_accuracy:.3f}"
        )

    def _scores(
        self, judge: Judge, name: str, key: str, images: NDArray[np.uint8]
    ) -> NDArray[np.float64]:
        return judge(self.features.features(self._network, name, key, images))

    def _anchors(self, judge: Judge) -> list[RecognitionRow]:
        """Return the rows of photographs, their reconstructions and their mosaics."""
        rows = _drawn_rows(
            self.pictures.rows_of_classes(len(self.inputs.classes)),
            self.config.per_class,
            self.config.seed,
        )

        # What a judge makes of real pictures, of the first stage's best, and of color alone.
        labels, (key, real) = self.pictures.labels[rows], self._photographs(rows)
        sets = {"photographs": (key, real), "reconstructions": self._reconstructions(key, real)}
        sets |= {f"mosaics {n}x{n}": (digest_json([key, n]), mosaic(real, n)) for n in _MOSAICS}

        return [
            recognition_row(
                name, self._scores(judge, name.replace(" ", "-"), digest, images), labels
            )
            for name, (digest, images) in sets.items()
        ]

    def _photographs(self, rows: NDArray[np.int64]) -> tuple[str, NDArray[np.uint8]]:
        """Return pictures at the model's resolution, with a digest of what they are."""
        key = digest_json([self.pictures.digest, rows.tolist(), self.side])
        return key, self.pictures.squares(rows, self.side)

    def _reconstructions(self, key: str, real: NDArray[np.uint8]) -> tuple[str, NDArray[np.uint8]]:
        first_stage = self.model.first_stage
        if first_stage is None:  # of pixels: nothing is lost
            return key, real
        own = digest_json([key, first_stage.digest])
        return own, self.arrays.once(
            f"reconstructions-{key}", own, lambda: reconstruct(first_stage, real)
        )

    def _fidelity(self, digest: str, samples: NDArray[np.uint8]) -> dict[str, Fidelity]:
        """Return how far reconstructions and samples are from half of the pictures, which neither
        is made of.

        Samples are conditioned on both halves.
        """
        order = np.random.default_rng([self.config.seed, 2]).permutation(len(self.pictures))
        count = min(len(order) // 2, len(samples))
        if count < LEAST:
            raise SourceError(
                "distances need four pictures", where=self.pictures.spec, fix="--no-distances"
            )

        # One half is drawn and reconstructed, the other is the reference of all.
        key, real = self._photographs(order[:count])
        other, reference = self._photographs(order[count : 2 * count])
        restored_key, restored = self._reconstructions(key, real)
        sets = {
            "half": (key, real),
            "reference": (other, reference),
            "reconstructed-half": (restored_key, restored),
            "samples": (digest, samples),
        }

        found = {
            name: self.features.features("inception", name, own, images).astype(np.float64)
            for name, (own, images) in sets.items()
        }
        return {
            name: fidelity(found[place], found["half"], found["reference"], self.config.seed)
            for name, place in (("reconstructions", "reconstructed-half"), ("samples", "samples"))
        }

    def _identification(
        self, plan: SamplePlan, digest: str, samples: NDArray[np.uint8]
    ) -> tuple[Identification, NDArray[np.float64]]:
        key, squares = self._photographs(plan.rows)
        of_pictures = self.features.features("lite2", "contexts", key, squares)[:, :LITE2_POOLED]
        of_samples = self.features.features("lite2", "samples", digest, samples)[:, :LITE2_POOLED]
        # `plan.rows` is sorted and holds each picture once, so its features are computed only once.
        contexts = of_pictures[np.searchsorted(plan.rows, plan.contexts)].mean(axis=1)
        return identify(of_samples, contexts, self.config.seed)

    def _write_grid(
        self, plan: SamplePlan, samples: NDArray[np.uint8], confidence: NDArray[np.float64]
    ) -> None:
        """Write samples at three percentiles of confidence, each beside its context."""
        names = {item.label: item.name for item in self.inputs.classes}
        order, rows = np.argsort(confidence, kind="stable"), []
        count = min(_PER_PERCENTILE, len(order))
        for percentile in _PERCENTILES:
            middle = round(percentile / 100 * (len(order) - 1))
            # A window around the percentile, moved inwards where the order ends.
            first = min(max(0, middle - count // 2), len(order) - count)
            for number in order[first : first + count]:
                label = "" if plan.labels is None else names[int(plan.labels[number])]
                context = self.pictures.squares(plan.contexts[number], self.side)
                text = f"{percentile}% {confidence[number]:.2f} {label}"
                rows.append(GridRow(text, samples[number], context))
        draw_grid(rows, self.folder, GRID)


def reconstruct(first_stage: FirstStage, squares: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a first stage's reconstructions of pictures, uint8 [N, H, W, 3]."""
    pixels = torch.from_numpy(np.ascontiguousarray(squares.transpose(0, 3, 1, 2)))
    return np.concatenate(
        [to_uint8(first_stage.decode(first_stage.encode(part))) for part in pixels.split(64)]
    )


def _check_number(plan: SamplePlan) -> None:
    """Raise UsageError where a sample could not be identified among enough contexts."""
    if len(plan.contexts) < LEAST_CONTEXTS:
        raise UsageError(
            f"{len(plan.contexts)} samples, but each is identified among {LEAST_CONTEXTS} or more",
            where="--per-class, --pictures",
            fix="draw more of each class, or give more pictures",
        )


def _drawn_rows(rows: list[NDArray[np.int64]], per_class: int, seed: int) -> NDArray[np.int64]:
    """Return at most `per_class` random pictures of each class, in the order of the classes."""
    return np.concatenate(
        [
            np.random.default_rng([seed, 1, label]).permutation(found)[:per_class]
            for label, found in enumerate(rows)
        ]
    )
