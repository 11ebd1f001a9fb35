"""Any of the samplers by its name: its timesteps, and its run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from rdm.diffusion.sampler_names import (
    DEFAULT_ETA,
    DEFAULT_VARIANCE,
    SAMPLERS,
    SamplerName,
    StepSpacing,
    VarianceName,
    check_fits,
)
from rdm.diffusion.samplers import Denoiser, OnStep, Projection, ddim_sample, ddpm_sample
from rdm.diffusion.schedules import (
    NoiseSchedule,
    Spacing,
    ancestral_timesteps,
    ddim_timesteps,
    karras_timesteps,
    linspace_timesteps,
    trailing_timesteps,
)
from rdm.diffusion.solvers import diffusers_sample, euler_sample, heun_sample, plms_sample


@dataclass(frozen=True)
class NamedSampler:
    """A sampler with its settings.

    Attributes:
        name: in `SAMPLERS`.
        num_steps: of it; a step is one evaluation of the network per branch, but two of Heun's
            method and in the first step of PLMS.
        spacing: of its timesteps.
        eta: of DDIM, in [0, 1]; None: 1, as RDM samples.
        variance: of DDPM's ancestral sampling; None: the posterior's.

    Raises:
        ValueError: the settings do not fit together.
    """

    name: SamplerName = "ddim"
    num_steps: int = 100
    spacing: StepSpacing = "uniform"
    eta: float | None = None
    variance: VarianceName | None = None

    def __post_init__(self) -> None:
        """Check what fits together."""
        check_fits(self.name, spacing=self.spacing, eta=self.eta, variance=self.variance)
        facts = SAMPLERS[self.name]
        if self.num_steps < facts.least_steps:
            raise ValueError(f"{facts.title} takes at least {facts.least_steps} steps")

    def timesteps(self, schedule: NoiseSchedule, uniform: Spacing = "leading") -> Tensor:
        """Return the timesteps that the sampler visits, int64, rising.

        Args:
            schedule: of the network.
            uniform: the rule of uniform spacing, see `GaussianHead`; ancestral sampling has its
                own.

        Raises:
            ValueError: there are fewer timesteps than steps.
        """
        count, num_steps = schedule.num_timesteps, self.num_steps
        if self.spacing == "trailing":
            return trailing_timesteps(count, num_steps)
        if self.spacing == "karras":
            if SAMPLERS[self.name].ends_clean:
                return karras_timesteps(schedule, num_steps)
            # Level 0 is where DDIM ends, and no step.
            return karras_timesteps(schedule, num_steps + 1)[1:]
        if self.name == "ddpm":
            return ancestral_timesteps(count, num_steps)
        rule = ddim_timesteps if uniform == "leading" else linspace_timesteps
        return rule(count, num_steps)

    def run(
        self,
        denoise: Denoiser,
        x_t: Tensor,
        timesteps: Tensor,
        *,
        seeds: Sequence[int],
        on_step: OnStep | None = None,
        project: Projection | None = None,
    ) -> Tensor:
        """Return samples [B, ...], from x at the last of `timesteps`.

        Args:
            denoise: the network.
            x_t: [B, ...], float32 or float64.
            timesteps: int64, rising: all of `timesteps()`, or the first few from a sample that is
                only partly noised.
            seeds: one per sample; a sample depends on its own seed only.
            on_step: is called after each step.
            project: is applied to x after each step.

        Raises:
            ValueError: there is not one seed for each sample, or the timesteps do not rise.
        """
        # Samplers with settings of their own.
        if self.name == "ddim":
            eta = DEFAULT_ETA if self.eta is None else self.eta
            return ddim_sample(
                denoise, x_t, timesteps, eta=eta, seeds=seeds, on_step=on_step, project=project
            )
        if self.name == "ddpm":
            return ddpm_sample(
                denoise,
                x_t,
                timesteps,
                seeds=seeds,
                variance=self.variance or DEFAULT_VARIANCE,
                on_step=on_step,
                project=project,
            )

        # Solvers that diffusers has.
        if self.name in ("dpm++2m", "dpm++2m-sde", "unipc"):
            return diffusers_sample(
                self.name, denoise, x_t, timesteps, seeds=seeds, on_step=on_step, project=project
            )

        # Solvers of the ODE draw no noise, so they take no seeds.
        solve = {"plms": plms_sample, "euler": euler_sample, "heun": heun_sample}[self.name]
        return solve(denoise, x_t, timesteps, on_step=on_step, project=project)
