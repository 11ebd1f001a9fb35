"""Editing by diffusion: starts from pictures, known parts, interpolation.

References: [M] Meng et al. 2022 (SDEdit), [S] Shoemake 1985 (slerp), [R] Lugmayr et al. 2022
    (RePaint), whose projection after each step this is, without its resampling.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from rdm.diffusion.gaussian import q_sample
from rdm.diffusion.samplers import Denoiser, ddim_invert, ddim_sample
from rdm.diffusion.schedules import NoiseSchedule

_PARALLEL = 1e-6
"""Sine of an angle below which two vectors span no plane to speak of."""


@dataclass(frozen=True, eq=False)
class KnownRegion:
    """A `Projection`: known elements are put back after each step, as noisy as the others.

    Attributes:
        x0: the known samples [B, ...].
        keep: bool, broadcastable to x0: True where a sample is known.
        noise: standard normal [B, ...]; one for all steps, so that the known elements move on one
            path.
    """

    x0: Tensor
    keep: Tensor
    noise: Tensor

    def __call__(self, x: Tensor, alpha_bar: float) -> Tensor:
        """Return x [B, ...] at a level with its known elements put back."""
        known = alpha_bar**0.5 * self.x0 + (1 - alpha_bar) ** 0.5 * self.noise
        return torch.where(self.keep, known.to(x.dtype), x)

    def finished(self, x: Tensor) -> Tensor:
        """Return finished samples with the known elements exactly as given.

        DDIM and PLMS end at a level that is not quite clean.
        """
        return torch.where(self.keep, self.x0.to(x.dtype), x)


@dataclass(frozen=True, eq=False)
class Begun:
    """Where a sampler begins.

    Attributes:
        x_t: [B, ...] at the last of the timesteps, or the samples themselves where there are none.
        timesteps: int64, rising, those that are left to visit.
        known: what is put back after each step.
    """

    x_t: Tensor
    timesteps: Tensor
    known: KnownRegion | None


@dataclass(frozen=True, eq=False)
class Start:
    """A start in something other than noise of the seeds.

    Attributes:
        x0: samples [B, ...] to start from, or whose known parts are kept.
        strength: share of the steps that are taken, in [0, 1] ([M], as diffusers counts them: the
            whole part of steps times strength). 1 starts in noise in which x0 is all but lost, 0
            returns x0.
        keep: bool, broadcastable to x0: True where x0 is kept; None: nowhere.
        noise: standard normal [B, ...] in place of the seeds': a mixture of two, or an inverted
            picture.

    Raises:
        ValueError: the strength is out of range, or there is nothing that it is the strength of.
    """

    x0: Tensor | None = None
    strength: float = 1.0
    keep: Tensor | None = None
    noise: Tensor | None = None

    def __post_init__(self) -> None:
        """Check the parts."""
        if not 0 <= self.strength <= 1:
            raise ValueError(f"a strength lies in 0 .. 1, not {self.strength}")
        if self.x0 is None and (self.strength != 1 or self.keep is not None):
            raise ValueError("a strength or a known region needs the picture that it is of")

    def at(self, schedule: NoiseSchedule, timesteps: Tensor, noise: Tensor) -> Begun:
        """Return where a sampler begins.

        Args:
            schedule: of the network.
            timesteps: int64, rising: all that the sampler would visit.
            noise: of the seeds, standard normal [B, ...].

        Raises:
            ValueError: x0 or the noise is not shaped like the samples to draw.
        """
        shape = list(noise.shape)
        for name, given in (("picture", self.x0), ("noise", self.noise)):
            if given is not None and list(given.shape) != shape:
                raise ValueError(
                    f"the {name} to start from has the shape {list(given.shape)}, "
                    f"not {shape} of what is drawn"
                )
        initial = noise if self.noise is None else self.noise.to(noise)
        if self.x0 is None:
            return Begun(initial, timesteps, None)

        x0 = self.x0.to(noise)
        known = None if self.keep is None else KnownRegion(x0, self.keep.to(x0.device), initial)
        left = timesteps[: int(len(timesteps) * self.strength)]
        if not len(left):
            return Begun(x0, left, known)
        # What is to be filled in starts in nothing but noise: x0 there is whatever a mask hides.
        if known is not None and self.strength == 1:
            level = schedule.alpha_bars[int(left[-1])]
            return Begun(known(initial, level), left, known)
        t = left[-1:].expand(len(x0)).to(x0.device)
        return Begun(q_sample(schedule, x0, t, initial), left, known)


def slerp(first: Tensor, second: Tensor, fraction: float) -> Tensor:
    """Return the rows between two batches of vectors [B, ...], along great circles. [S]

    The angle to `first` grows linearly with the fraction. Lengths are mixed linearly, so unit
    vectors stay unit vectors, and noise keeps the length that networks know it with, of which a
    straight mixture loses up to three tenths. Parallel vectors are mixed straight; of the circles
    between opposite ones, which are many, one is taken.

    Args:
        first: at fraction 0, bit for bit.
        second: at fraction 1, bit for bit.
        fraction: in [0, 1].

    Raises:
        ValueError: the shapes differ, or the fraction is out of range.
    """
    if first.shape != second.shape:
        raise ValueError(f"vectors of {list(first.shape)} and {list(second.shape)} do not mix")
    if not 0 <= fraction <= 1:
        raise ValueError(f"a fraction lies in 0 .. 1, not {fraction}")
    if fraction in (0, 1):
        return second if fraction else first

    # In float64: the angle of nearly parallel vectors is a small difference.
    flat = [tensor.flatten(1).double() for tensor in (first, second)]
    lengths = [rows.norm(dim=1, keepdim=True) for rows in flat]
    one, other = (
        rows / length.clamp(min=torch.finfo(torch.float64).tiny)
        for rows, length in zip(flat, lengths, strict=True)
    )
    cosine = (one * other).sum(1, keepdim=True)
    # The part of the second that the first does not have: with it the circle is a sine and a
    # cosine, whatever the angle.
    across = other - cosine * one
    sine = across.norm(dim=1, keepdim=True)
    angle = torch.atan2(sine, cosine)
    direction = torch.where(sine > _PARALLEL, across / sine.clamp(min=1e-300), _across(one))
    turned = torch.cos(fraction * angle) * one + torch.sin(fraction * angle) * direction

    length = (1 - fraction) * lengths[0] + fraction * lengths[1]
    mixed = torch.where(
        (sine > _PARALLEL) | (cosine < 0),
        turned * length,
        (1 - fraction) * flat[0] + fraction * flat[1],
    )
    return mixed.view_as(first).to(first.dtype)


def text_difference(vector: Tensor, towards: Tensor, away: Tensor, fraction: float) -> Tensor:
    """Return unit vectors [B, D] turned along the difference of two texts.

    slerp(z, norm(z_towards - z_away), fraction): Ramesh et al. 2022, section 3.3, with fractions of
    up to a half.

    Raises:
        ValueError: the two texts have the same vector, so that there is no direction.
    """
    difference = towards - away
    if bool((difference.norm(dim=-1) < _PARALLEL).any()):
        raise ValueError("the two texts have the same vector: there is no direction between them")
    return slerp(vector, functional.normalize(difference, dim=-1).expand_as(vector), fraction)


@torch.no_grad()
def reconstruction(denoise: Denoiser, x0: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """Return the inverted latents of samples x0 [B, ...], and what DDIM with eta = 0 makes of them.

    Their distance from x0 is the error of the inversion, which falls as one over the steps.

    Args:
        denoise: the network; with the context that the samples belong to, and without guidance,
            which makes the error larger.
        x0: [B, ...].
        timesteps: int64, rising.
    """
    latents = ddim_invert(denoise, x0, timesteps)
    return latents, ddim_sample(denoise, latents, timesteps)


def on_canvas(x0: Tensor, height: int, width: int, top: int, left: int) -> tuple[Tensor, Tensor]:
    """Return samples on a larger canvas, and the mask of what is known there: outpainting.

    Args:
        x0: [B, C, h, w].
        height: of the canvas.
        width: of the canvas.
        top: rows of the canvas above the samples.
        left: columns of the canvas beside the samples.

    Returns:
        x0 [B, C, height, width], zero where nothing is known, and keep bool [1, 1, height, width].

    Raises:
        ValueError: the samples do not lie within the canvas.
    """
    rows, columns = x0.shape[-2:]
    if min(top, left) < 0 or top + rows > height or left + columns > width:
        raise ValueError(
            f"{rows} x {columns} at ({top}, {left}) do not lie within {height} x {width}"
        )
    padding = (left, width - left - columns, top, height - top - rows)
    keep = functional.pad(torch.ones(1, 1, rows, columns), padding) > 0
    return functional.pad(x0, padding), keep.to(x0.device)


def _across(unit: Tensor) -> Tensor:
    """Return unit vectors at right angles to unit vectors [B, D]; the same ones each time."""
    # The axis along which a vector points least is far from parallel to it.
    axis = functional.one_hot(unit.abs().argmin(dim=1), unit.shape[1]).to(unit.dtype)
    rest = axis - (axis * unit).sum(1, keepdim=True) * unit
    return rest / rest.norm(dim=1, keepdim=True).clamp(min=1e-300)
