"""A model's folder: `model.json`, `network/` and first stage, valid on every machine.

Training's export is sampling's model: `write_model` and `open_model` are each other's inverse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from rdm.config import digest_json
from rdm.context import Context
from rdm.database import RetrievalDatabase
from rdm.diffusion.editing import Start
from rdm.encoders.text_states import load_text_states
from rdm.errors import EncoderMismatchError, ModelError, UsageError
from rdm.generators.autoguidance import require_shared
from rdm.generators.conditions import Condition, LabelCondition, NeighborCondition, TextCondition
from rdm.generators.generator import Generator, GeneratorConfig
from rdm.generators.heads import Negative, Steering
from rdm.generators.model_first_stage import FIRST_STAGE, copy_first_stage, open_first_stage
from rdm.generators.portable_names import portable_name
from rdm.generators.provenance import DefaultDatabase, Provenance
from rdm.generators.sample_settings import OnDrawStep, SampleSettings, Setting
from rdm.generators.spaces import AnySpaceConfig, LatentSpace, PixelSpace, Space, TokenSpace
from rdm.models.assets import is_asset, named_folder
from rdm.models.first_stage.first_stage import FirstStage
from rdm.models.networks import Network, load_network, save_network
from rdm.storage import sha256_file

INFO = "model.json"
NETWORK = "network"
DIFFUSERS_NETWORK = "unet"  # in the layout of its pipelines


class ModelInfo(Provenance):
    """`model.json`: what a model is, and what it learned from."""

    format: Literal["retrieval-diffusion-model"] = "retrieval-diffusion-model"
    generator: GeneratorConfig
    default_database: DefaultDatabase | None = None
    """Opened where a pipeline is given none."""

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources that condition: those that training ever showed."""
        return self.generator.conditions.read

    @property
    def reads_neighbors(self) -> bool:
        """Whether the model looks neighbors up, and so needs a database."""
        return "neighbors" in self.sources

    @property
    def known_classes(self) -> tuple[str, ...]:
        """The classes that the model can be asked for by name; none where it reads no class."""
        return (self.class_names or ()) if "label" in self.sources else ()

    @property
    def reads_text(self) -> bool:
        """Whether a caption conditions the model by itself, not only by the neighbors of it."""
        return "text" in self.sources

    def check_database(self, database: RetrievalDatabase) -> None:
        """Raise EncoderMismatchError unless the database's embeddings are of the encoder that the
        model was trained with. Any database will do for a model that reads no neighbors.
        """
        if self.reads_neighbors and database.encoder_digest != self.encoder_digest:
            raise EncoderMismatchError(
                f"the model was trained with embeddings of {self.encoder} "
                f"{self.encoder_digest}, the "
                f"database holds those of {database.encoder_name} {database.encoder_digest}",
                where=database.folder.url,
                fix="build the database with the model's encoder",
            )


def model_info(config: GeneratorConfig, provenance: Provenance) -> ModelInfo:
    """Return the description of a model; the training's own settings are left out."""
    generator = GeneratorConfig.model_validate(
        config.model_dump(include=set(GeneratorConfig.model_fields))
    )
    return ModelInfo(generator=generator, **provenance.model_dump())


def write_model(directory: Path, info: ModelInfo, network: Network) -> None:
    """Write a model into an existing, empty folder.

    Raises:
        ModelError: the first stage's folder is gone.
    """
    save_network(network, directory / NETWORK)
    write_info(directory, info)


def write_info(directory: Path, info: ModelInfo) -> None:
    """Write a model's description, and a copy of its first stage unless that is an asset.

    No absolute path is written, so that the folder opens wherever it is copied to: of the
    photographs' source and of the encoder the last part of a path stays.

    Raises:
        ModelError: the first stage's folder is gone.
    """
    changes: dict[str, object] = {}

    # Only a first stage of one's own goes along: assets ship with every release.
    if info.autoencoder is not None and not is_asset(info.autoencoder):
        copy_first_stage(Path(info.autoencoder), directory / FIRST_STAGE)
        changes["autoencoder"] = FIRST_STAGE

    # Names without the folders of this machine.
    if info.encoder is not None:
        changes["encoder"] = portable_name(info.encoder)
    if info.database is not None:
        source = portable_name(info.database.source)
        changes["database"] = info.database.model_copy(update={"source": source})
    text = info.model_copy(update=changes).model_dump_json(indent=1, exclude_none=False)
    (directory / INFO).write_text(text + "\n", encoding="utf-8")


def read_info(directory: Path) -> ModelInfo:
    """Return a model's description.

    Raises:
        ModelError: there is none, or it is damaged.
    """
    path = directory / INFO
    try:
        return ModelInfo.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        # The usual mistake: the run's folder in place of its model's.
        raise ModelError(
            "there is no model here",
            where=directory,
            fix="give --model the `model` folder below what `rdm train --out` wrote",
        ) from error
    except ValidationError as error:
        # One field is enough to tell a release from damage.
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))

        raise ModelError(
            f"model.json is damaged, or of another release: {place}: {first['msg']}",
            where=path,
            fix="export the model again",
        ) from error
    except ValueError as error:
        raise ModelError(
            f"model.json is damaged: {error}", where=path, fix="export the model again"
        ) from error


def open_space(
    config: AnySpaceConfig, first_stage: FirstStage | None, sample_shape: Sequence[int]
) -> Space:
    """Return the space of a configuration.

    Args:
        config: which.
        first_stage: of latents and tokens.
        sample_shape: of one sample, as the network has it.

    Raises:
        ModelError: latents or tokens without a first stage, or tokens of one that has no codebook.
    """
    if config.kind == "pixels":
        return PixelSpace()
    if first_stage is None:
        raise ModelError(
            f"{config.kind} need a first stage", fix="name the first stage that they are made with"
        )
    if config.kind == "latents":
        return LatentSpace.of(first_stage)
    return TokenSpace(first_stage, round(sample_shape[0] ** 0.5))


def open_conditions(config: GeneratorConfig) -> tuple[Condition, ...]:
    """Return the readers of a system's sources."""
    dim = config.network.cross_attention_dim or 0
    found: list[Condition] = []
    if config.conditions.neighbors is not None:
        found.append(NeighborCondition(config.conditions.neighbors, dim))
    if (text := config.conditions.text) is not None:
        found.append(TextCondition(text, load_text_states(text.encoder, text.length)))
    if config.conditions.label is not None:
        found.append(LabelCondition(config.conditions.label))
    return tuple(found)


def check_text_network(
    conditions: Sequence[Condition], wanted: str | None, where: str | Path
) -> None:
    """Raise EncoderMismatchError where a caption would be read by another text network than the
    one that the model was trained with."""
    for condition in conditions:
        if isinstance(condition, TextCondition) and condition.encode.digest != wanted:
            raise EncoderMismatchError(
                f"the model was trained with captions of the text network {wanted}, the "
                f"installed {condition.config.encoder} is {condition.encode.digest}",
                where=where,
                fix="install the release of the text network that the model was trained with",
            )


@dataclass(frozen=True)
class Model:
    """A trained system in a folder: from what is known of a picture to the picture.

    Attributes:
        directory: the folder.
        info: its description.
        generator: network, space, conditions and head, in evaluation mode.
        first_stage: of latents and tokens; None of pixels.
    """

    directory: Path
    info: ModelInfo
    generator: Generator
    first_stage: FirstStage | None

    @property
    def config(self) -> GeneratorConfig:
        """What the system is."""
        return self.info.generator

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return self.generator.device

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources that condition: those that training ever showed."""
        return self.info.sources

    @property
    def reads_neighbors(self) -> bool:
        """Whether the model looks neighbors up, and so needs a database."""
        return self.info.reads_neighbors

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes that the model can be asked for by name; none where it reads no class."""
        return self.info.known_classes

    @property
    def reads_text(self) -> bool:
        """Whether a caption conditions the model by itself, not only by the neighbors of it."""
        return self.info.reads_text

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits of the model's files, its first stage's included."""
        # The first stage decides the pictures too, and may be an asset, outside of the folder.
        digests = [] if self.first_stage is None else [self.first_stage.digest]
        for path in sorted(self.directory.rglob("*")):
            if path.is_file() and path.suffix in (".json", ".safetensors"):
                digests.append(f"{path.relative_to(self.directory)} {sha256_file(path)}")
        return digest_json(digests)

    def draw(
        self,
        context: Context,
        seeds: Sequence[int],
        settings: SampleSettings,
        on_step: OnDrawStep | None = None,
        negative: Negative | None = None,
        start: Start | None = None,
    ) -> Tensor:
        """Return pictures float32 [B, 3, H, W] in [-1, 1], one per seed and row of the context.

        Args:
            context: one row per picture.
            seeds: of the pictures, B.
            settings: of the head and of guidance.
            on_step: called after each step of a batch; what it raises ends the drawing.
            negative: what the pictures are led away from.
            start: a picture to start from, or whose parts are kept.

        Raises:
            UsageError: the settings do not go with the model, or it is to be led by one that does
                not work on the same.
        """
        steering = self.steering(settings, negative, start)
        return self.generator.sample(context, seeds, settings, on_step, steering)

    def steering(
        self,
        settings: SampleSettings,
        negative: Negative | None = None,
        start: Start | None = None,
    ) -> Steering:
        """Return what leads a drawing: what is given, and the weaker model that settings name.

        Raises:
            UsageError: that model does not work on the same.
        """
        name = settings.autoguidance
        if name is not None and negative is not None:
            raise UsageError(
                "autoguidance leads away from one thing, a negative from another",
                where="autoguidance",
                fix="leave one of them out",
            )
        return Steering(negative, None if name is None else self.weaker(name).network, start)

    def check_settings(self, settings: SampleSettings) -> None:
        """Refuse settings that the model cannot draw with, before anything is written.

        Raises:
            UsageError: says which, and what to do.
        """
        self.generator.check_settings(settings)
        self.steering(settings)

    def acting(self, settings: SampleSettings) -> dict[str, Setting]:
        """Return the settings that act on this model, by name; of a weaker model its folder's name
        and its digest, so that no record holds a path."""
        acting = self.generator.acting(settings)
        if "autoguidance" in acting and settings.autoguidance is not None:
            weaker = _opened(settings.autoguidance, str(self.device))
            acting["autoguidance"] = f"{weaker.directory.name} {weaker.digest}"
        return acting

    def weaker(self, name_or_dir: str) -> Generator:
        """Return the system of another model that this one can be led away from.

        Raises:
            UsageError: it works on something else, see `require_shared`.
            ModelError: the folder holds no model.
        """
        other = _opened(name_or_dir, str(self.device))
        require_shared((self.config, self.info), (other.config, other.info), other.directory)
        return other.generator

    def check_database(self, database: RetrievalDatabase) -> None:
        """Raise EncoderMismatchError unless the database's embeddings are of the encoder that the
        model was trained with. Any database will do for a model that reads no neighbors.
        """
        self.info.check_database(database)


def open_model(name_or_dir: str | Path, device: torch.device | str = "cpu") -> Model:
    """Open a model: `assets://NAME`, or a folder.

    Raises:
        ModelError: no such model ships, the folder holds none, it is damaged, or its first stage is
            no longer the same.
    """
    directory = named_folder(str(name_or_dir), INFO, "model")
    info = read_info(directory)
    config = info.generator
    first_stage = (
        None if config.space.kind == "pixels" else open_first_stage(directory, info).to(device)
    )

    # The parts of the system.
    space = open_space(config.space, first_stage, config.network.sample_shape)
    network = load_network(_network_folder(directory), config.network)
    conditions = open_conditions(config)

    # Captions read by another text network would condition on noise, without an error.
    check_text_network(conditions, info.text_encoder_digest, directory)
    generator = Generator(config, space, conditions, network).to(device).eval()
    return Model(directory, info, generator, first_stage)


@lru_cache(maxsize=2)
def _opened(name_or_dir: str, device: str) -> Model:
    # Each batch asks for it; a folder's weights are read once.
    return open_model(name_or_dir, device)


def _network_folder(directory: Path) -> Path:
    """Return the folder of a model's network, in our layout or in diffusers'."""
    other = directory / DIFFUSERS_NETWORK
    return other if other.is_dir() else directory / NETWORK
