"""Networks of other people's checkpoints as model folders, beside those that were trained here."""

from __future__ import annotations

import shutil
from pathlib import Path

from rdm.database import RetrievalDatabase
from rdm.diffusion.schedules import rdm, rdm_768
from rdm.errors import ModelError, UsageError
from rdm.generators.conditions import Conditions, NeighborsConfig
from rdm.generators.generator import GeneratorConfig
from rdm.generators.heads import GaussianConfig
from rdm.generators.model_folder import NETWORK, ModelInfo, model_info, write_info
from rdm.generators.provenance import Provenance, SeenDatabase
from rdm.models.assets import absolute_name
from rdm.models.compvis.import_checkpoint import Imported
from rdm.models.first_stage.first_stage import load_autoencoder
from rdm.models.unconditional import UnconditionalConfig
from rdm.models.unet import DenoiserConfig
from rdm.storage.files import storage_errors


def official_generator(network: DenoiserConfig) -> GeneratorConfig:
    """Return the released system that a U-Net is part of, by the length of its context vectors.

    The official models predict the noise. Those of ImageNet and FFHQ read the encoder's own (`raw`)
    vectors, unscaled; the one for 768 pixels, whose vectors have 768 numbers, reads normalized ones
    and has a schedule of its own.
    """
    is_768 = network.cross_attention_dim == 768
    neighbors = NeighborsConfig(embedding="unit" if is_768 else "raw", scale=1.0, dropout=0.0)
    return GeneratorConfig(
        network=network,
        conditions=Conditions(neighbors=neighbors),
        head=GaussianConfig(schedule=rdm_768() if is_768 else rdm()),
    )


def describe_imported_model(
    imported: Imported, autoencoder: str | None, database: str | None, *, kind: str
) -> ModelInfo | None:
    """Return the `model.json` of an official U-Net; None without a first stage and a database.

    Args:
        imported: the U-Net.
        autoencoder: name of its first stage.
        database: whose encoder made its conditioning vectors.
        kind: `rdm-unet` or `ldm-unet`.

    Raises:
        UsageError: one of the two was named without the other, or for a U-Net that is not an RDM's.
        ModelError: first stage or database do not fit the U-Net, or neighbors cannot condition it.
    """
    if kind == "rdm-unet" and isinstance(imported.config, UnconditionalConfig):
        raise ModelError(
            "this U-Net has no cross-attention, so no neighbors can condition it",
            fix="--kind ldm-unet",
        )

    if autoencoder is None and database is None:
        return None
    if autoencoder is None or database is None or kind != "rdm-unet":
        raise UsageError(
            "a model folder is made of an RDM's U-Net, a first stage and a database",
            fix="give --kind rdm-unet, --autoencoder and --database, or neither of the last two",
        )

    # The U-Net must fit what it is put together with.
    config = imported.config
    assert isinstance(config, DenoiserConfig)
    first_stage, opened = load_autoencoder(autoencoder), RetrievalDatabase.open(database)
    for what, have, want in (
        ("channels of the first stage's latents", first_stage.latent_channels, config.out_channels),
        (
            "length of the database's embeddings",
            opened.version.embedding_dim,
            config.cross_attention_dim,
        ),
    ):
        if have != want:
            raise ModelError(
                f"{what}: {have}, but the U-Net takes {want}",
                where=autoencoder if "channels" in what else database,
                fix="name what the model was trained with",
            )

    provenance = Provenance(
        autoencoder=absolute_name(autoencoder),
        latents_digest=first_stage.latents_digest,
        resolution=config.sample_size * first_stage.factor,
        encoder=opened.encoder_name,
        encoder_digest=opened.encoder_digest,
        database=SeenDatabase(version=opened.version.number, source=opened.version.source),
    )
    return model_info(official_generator(config), provenance)


def save_network(imported: Imported, out: Path, info: ModelInfo | None) -> None:
    """Write a network in diffusers' layout, and the model's description beside it.

    Raises:
        UsageError: the folder is not empty, or the one that the command was started in.
        StorageError: it cannot be written.
    """
    with storage_errors(out):
        # The rename replaces the folder: a shell that stands in it would be left without.
        if out.resolve() == Path.cwd() or (out.exists() and any(out.iterdir())):
            raise UsageError(
                "the folder is in use, or not empty", where=out, fix="give --out a new folder"
            )
        temporary = out.with_name(f".{out.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        is_unet = isinstance(imported.config, DenoiserConfig | UnconditionalConfig)
        imported.model.save_pretrained(
            str(temporary / NETWORK if is_unet else temporary), safe_serialization=True
        )
        if info is not None:
            write_info(temporary, info)
        if out.exists():
            out.rmdir()
        temporary.rename(out)
