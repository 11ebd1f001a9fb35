"""`rdm evaluate-autoencoder`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from rdm.cli.console import DeviceOption, JsonFlag, in_range, show


def register(app: App) -> None:
    """Add the command."""
    app.command(evaluate_autoencoder, name="evaluate-autoencoder")


def evaluate_autoencoder(
    *,
    autoencoder: Annotated[
        str, Parameter(help="assets://NAME, or a folder of diffusers' AutoencoderKL or VQModel")
    ],
    source: Annotated[
        str, Parameter(help="photographs; a share of them is measured, the others fit the baseline")
    ],
    image_size: Annotated[
        int, Parameter(help="side of the pictures, pixels", validator=in_range(8))
    ] = 64,
    held_out_fraction: Annotated[
        float,
        Parameter(
            help="share measured, the one that a training keeps out; 1: all of a source that "
            "no training has seen, "
            "without the linear baseline",
            validator=in_range(0, 1),
        ),
    ] = 0.02,
    num_images: Annotated[
        int,
        Parameter(help="pictures measured at most; rFID falls with more", validator=in_range(1)),
    ] = 2000,
    fid: Annotated[
        bool,
        Parameter(
            help="rFID: Frechet distance of photographs and reconstructions; KID and excess "
            "FID of halves"
        ),
    ] = True,
    perceptual: Annotated[
        str,
        Parameter(
            help="`embedded` (EfficientNet-Lite0, not LPIPS), or a file of VGG-16's weights "
            "for LPIPS"
        ),
    ] = "embedded",
    heads: Annotated[
        str | None, Parameter(help="a file of LPIPS's learned weights for VGG-16")
    ] = None,
    device: DeviceOption = "auto",
    json: JsonFlag = False,
) -> None:
    """Measure a first stage on held-out photographs: PSNR, perceptual distance, KID, FID, latents,
    codebook usage.

    Example: rdm evaluate-autoencoder --autoencoder assets://autoencoder-kl-f4 --source
        samples://openimages-birds --held-out-fraction 0.2
    """
    from rdm.compute.device import compute_device, describe_device
    from rdm.evaluation.metrics.fid import InceptionFeatures
    from rdm.evaluation.reconstructions import Judges, evaluate_on_source
    from rdm.models.first_stage.first_stage import load_autoencoder
    from rdm.models.first_stage.perceptual import open_perceptual
    from rdm.training.data.photographs import PhotoConfig

    used = compute_device(device)
    first_stage = load_autoencoder(autoencoder).to(used)
    config = PhotoConfig(image_size=image_size, held_out_fraction=held_out_fraction)
    judges = Judges(
        open_perceptual(perceptual, heads).to(used), InceptionFeatures(used) if fid else None
    )
    result = evaluate_on_source(first_stage, source, config, num_images, judges)
    show(
        {"autoencoder": autoencoder, **result.to_json(), "device": describe_device(used)},
        as_json=json,
        title="measured",
    )
