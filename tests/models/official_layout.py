"""The key sets and shapes of official checkpoints, written down from the official block
numbering."""

from __future__ import annotations

from collections.abc import Sequence

Shapes = dict[str, tuple[int, ...]]


def affine(name: str, *shape: int, bias: bool = True) -> Shapes:
    """A weight of a shape, and its bias."""
    return {f"{name}.weight": shape} | ({f"{name}.bias": shape[:1]} if bias else {})


def unet(
    channels: Sequence[int],
    attends: Sequence[bool],
    context: int | None,
    latent: int = 3,
    blocks: int = 2,
) -> Shapes:
    """openaimodel.UNetModel with spatial transformers of depth 1, or without a context with
    `AttentionBlock`s."""
    first, time = channels[0], 4 * channels[0]
    shapes = affine("time_embed.0", time, first) | affine("time_embed.2", time, time)
    shapes |= affine("input_blocks.0.0", first, latent, 3, 3)
    widths, width, number = [first], first, 1
    for level, out in enumerate(channels):
        for _ in range(blocks):
            shapes |= _unet_resnet(f"input_blocks.{number}.0", width, out, time)
            shapes |= (
                _transformer(f"input_blocks.{number}.1", out, context) if attends[level] else {}
            )
            width, number = out, number + 1
            widths.append(out)
        if level < len(channels) - 1:
            shapes |= affine(f"input_blocks.{number}.0.op", out, out, 3, 3)
            widths.append(out)
            number += 1
    shapes |= _unet_resnet("middle_block.0", width, width, time) | _transformer(
        "middle_block.1", width, context
    )
    shapes |= _unet_resnet("middle_block.2", width, width, time)
    number = 0
    for level in reversed(range(len(channels))):
        for block in range(blocks + 1):
            shapes |= _unet_resnet(
                f"output_blocks.{number}.0", width + widths.pop(), channels[level], time
            )
            width = channels[level]
            shapes |= (
                _transformer(f"output_blocks.{number}.1", width, context) if attends[level] else {}
            )
            if level and block == blocks:
                shapes |= affine(
                    f"output_blocks.{number}.{2 if attends[level] else 1}.conv", width, width, 3, 3
                )
            number += 1
    return shapes | affine("out.0", first) | affine("out.2", latent, first, 3, 3)


def first_stage(
    channels: Sequence[int],
    z: int,
    *,
    codebook: int | None = None,
    attends_last: bool = False,
    mid: bool = True,
) -> Shapes:
    """Encoder, decoder, the two convolutions between, and the codebook of autoencoder.AutoencoderKL
    or VQModel."""
    moments, width = z if codebook else 2 * z, channels[0]
    shapes = affine("quant_conv", moments, moments, 1, 1) | affine("post_quant_conv", z, z, 1, 1)
    shapes |= {"quantize.embedding.weight": (codebook, z)} if codebook else {}
    shapes |= affine("encoder.conv_in", width, 3, 3, 3)
    last = len(channels) - 1
    for level, out in enumerate(channels):
        for block in range(2):
            shapes |= _stage_resnet(f"encoder.down.{level}.block.{block}", width, out)
            shapes |= (
                _attention(f"encoder.down.{level}.attn.{block}", out)
                if attends_last and level == last
                else {}
            )
            width = out
        shapes |= (
            affine(f"encoder.down.{level}.downsample.conv", out, out, 3, 3) if level < last else {}
        )
    shapes |= _middle("encoder.mid", width, mid) | affine("encoder.norm_out", width)
    shapes |= affine("encoder.conv_out", moments, width, 3, 3) | affine(
        "decoder.conv_in", width, z, 3, 3
    )
    shapes |= _middle("decoder.mid", width, mid)
    for level in reversed(range(len(channels))):
        for block in range(3):
            shapes |= _stage_resnet(f"decoder.up.{level}.block.{block}", width, channels[level])
            width = channels[level]
            shapes |= (
                _attention(f"decoder.up.{level}.attn.{block}", width)
                if attends_last and level == last
                else {}
            )
        shapes |= affine(f"decoder.up.{level}.upsample.conv", width, width, 3, 3) if level else {}
    return shapes | affine("decoder.norm_out", width) | affine("decoder.conv_out", 3, width, 3, 3)


def _unet_resnet(name: str, width: int, out: int, time: int) -> Shapes:
    shapes = affine(f"{name}.in_layers.0", width) | affine(f"{name}.in_layers.2", out, width, 3, 3)
    shapes |= affine(f"{name}.emb_layers.1", out, time)
    shapes |= affine(f"{name}.out_layers.0", out) | affine(f"{name}.out_layers.3", out, out, 3, 3)
    return shapes | (affine(f"{name}.skip_connection", out, width, 1, 1) if width != out else {})


def _transformer(name: str, width: int, context: int | None) -> Shapes:
    if context is None:
        shapes = affine(f"{name}.norm", width) | affine(f"{name}.qkv", 3 * width, width, 1)
        return shapes | affine(f"{name}.proj_out", width, width, 1)
    shapes = affine(f"{name}.norm", width) | affine(f"{name}.proj_in", width, width, 1, 1)
    block = f"{name}.transformer_blocks.0"
    for attention, keys in (("attn1", width), ("attn2", context)):
        shapes |= affine(f"{block}.{attention}.to_q", width, width, bias=False)
        shapes |= affine(f"{block}.{attention}.to_k", width, keys, bias=False)
        shapes |= affine(f"{block}.{attention}.to_v", width, keys, bias=False)
        shapes |= affine(f"{block}.{attention}.to_out.0", width, width)
    shapes |= affine(f"{block}.ff.net.0.proj", 8 * width, width) | affine(
        f"{block}.ff.net.2", width, 4 * width
    )
    for norm in ("norm1", "norm2", "norm3"):
        shapes |= affine(f"{block}.{norm}", width)
    return shapes | affine(f"{name}.proj_out", width, width, 1, 1)


def _stage_resnet(name: str, width: int, out: int) -> Shapes:
    shapes = affine(f"{name}.norm1", width) | affine(f"{name}.conv1", out, width, 3, 3)
    shapes |= affine(f"{name}.norm2", out) | affine(f"{name}.conv2", out, out, 3, 3)
    return shapes | (affine(f"{name}.nin_shortcut", out, width, 1, 1) if width != out else {})


def _attention(name: str, width: int) -> Shapes:
    shapes = affine(f"{name}.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        shapes |= affine(f"{name}.{part}", width, width, 1, 1)
    return shapes


def _middle(name: str, width: int, attends: bool) -> Shapes:
    shapes = _stage_resnet(f"{name}.block_1", width, width) | _stage_resnet(
        f"{name}.block_2", width, width
    )
    return shapes | (_attention(f"{name}.attn_1", width) if attends else {})
