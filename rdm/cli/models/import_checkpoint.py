"""`rdm import-checkpoint`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from rdm.cli.console import DryRunFlag, JsonFlag, show


def register(app: App) -> None:
    """Add the command."""
    app.command(import_checkpoint, name="import-checkpoint")


def import_checkpoint(
    file: Annotated[
        Path, Parameter(help="safetensors, or a .ckpt that holds tensors and plain data alone")
    ],
    *,
    kind: Annotated[
        Literal["rdm-unet", "ldm-unet", "vq-first-stage", "kl-first-stage"],
        Parameter(
            help="which part of the checkpoint; a whole model's file has a U-Net and a first stage"
        ),
    ],
    out: Annotated[
        Path, Parameter(help="folder for the network; a U-Net comes into its folder `network`")
    ],
    autoencoder: Annotated[
        str | None, Parameter(help="first stage of the U-Net, imported before")
    ] = None,
    database: Annotated[
        str | None, Parameter(help="database whose encoder conditions the RDM")
    ] = None,
    ema: Annotated[
        bool, Parameter(help="averaged weights of the U-Net where the checkpoint has them")
    ] = True,
    head_dim: Annotated[int, Parameter(help="the configuration's num_head_channels")] = 32,
    num_heads: Annotated[
        int | None, Parameter(help="the configuration's num_heads, in place of head_dim")
    ] = None,
    latent_size: Annotated[
        int, Parameter(help="side of the latents (the U-Net's image_size)")
    ] = 64,
    scale_factor: Annotated[
        float, Parameter(help="the model's scale_factor, for a first stage")
    ] = 1.0,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
) -> None:
    """Save a network of a latent-diffusion or RDM checkpoint (CompVis) in diffusers' layout.

    With --autoencoder and --database, an RDM's U-Net becomes a model folder that `rdm sample
    --model` opens. The U-Net of an unconditional LDM becomes diffusers' UNet2DModel.

    Example: rdm import-checkpoint model.ckpt --kind vq-first-stage --out vq-f4

    Example: rdm import-checkpoint model.ckpt --kind rdm-unet --autoencoder vq-f4
        --database birds --out rdm-imagenet
    """
    from rdm.models.checkpoint_file import read_checkpoint
    from rdm.models.compvis.import_checkpoint import import_first_stage, import_unet
    from rdm.models.unet import num_parameters
    from rdm.training.imported_model import describe_imported_model, save_network

    # Only a U-Net becomes a model's folder: a first stage is named by models.
    state = read_checkpoint(file)
    info = None
    if kind.endswith("-unet"):
        imported = import_unet(
            state, use_ema=ema, sample_size=latent_size, head_dim=head_dim, num_heads=num_heads
        )
        info = describe_imported_model(imported, autoencoder, database, kind=kind)
    else:
        imported = import_first_stage(
            state, codebook=kind == "vq-first-stage", scaling_factor=scale_factor
        )

    if not dry_run:
        save_network(imported, out, info)

    show(
        {
            "out": out,
            "network": type(imported.model).__name__,
            "parameters": num_parameters(imported.model),
            "weights": imported.weights,
            "model_folder": info is not None,
            "config": imported.config.model_dump(mode="json"),
        },
        as_json=json,
        title="would import" if dry_run else "imported",
    )
