"""The samplers by name: what each takes, and what does not fit together. Nothing here needs torch.

References: DDPM: Ho et al. 2020. DDIM: Song et al. 2021. PLMS: Liu et al. 2022 (PNDM).
    DPM-Solver++: Lu et al. 2022. UniPC: Zhao et al. 2023. Euler, Heun and the Karras spacing:
    Karras et al. 2022.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

SamplerName = Literal["ddim", "ddpm", "plms", "dpm++2m", "dpm++2m-sde", "unipc", "euler", "heun"]
StepSpacing = Literal["uniform", "trailing", "karras"]
VarianceName = Literal["posterior", "beta", "learned"]

DEFAULT_ETA = 1.0
DEFAULT_VARIANCE: VarianceName = "posterior"


@dataclass(frozen=True)
class SamplerFacts:
    """What a sampler takes.

    Attributes:
        title: its name in sentences.
        spacings: of its timesteps; the first is the default.
        takes: which of `eta` and `variance` mean something to it.
        least_steps: the fewest steps that it can go.
        ends_clean: its last step leads to ab = 1; else to ab of timestep 0, as DDIM's does.
        is_stochastic: it always adds noise; DDIM does by its eta.
    """

    title: str
    spacings: tuple[StepSpacing, ...] = ("uniform", "trailing", "karras")
    takes: frozenset[str] = frozenset()
    least_steps: int = 1
    ends_clean: bool = True
    is_stochastic: bool = False


SAMPLERS: Mapping[SamplerName, SamplerFacts] = {
    "ddim": SamplerFacts("DDIM", takes=frozenset({"eta"}), ends_clean=False),
    "ddpm": SamplerFacts(
        "DDPM's ancestral sampling",
        spacings=("uniform", "trailing"),
        takes=frozenset({"variance"}),
        least_steps=2,
        is_stochastic=True,
    ),
    # Its extrapolation weights are those of equal distances between timesteps.
    "plms": SamplerFacts("PLMS", spacings=("uniform", "trailing"), least_steps=2, ends_clean=False),
    "dpm++2m": SamplerFacts("DPM-Solver++ 2M"),
    "dpm++2m-sde": SamplerFacts("DPM-Solver++ 2M SDE", is_stochastic=True),
    "unipc": SamplerFacts("UniPC"),
    "euler": SamplerFacts("Euler"),
    "heun": SamplerFacts("Heun"),
}

ALIASES: Mapping[str, SamplerName] = {
    "ancestral": "ddpm",
    "pndm": "plms",
    "dpmsolver++": "dpm++2m",
    "sde-dpmsolver++": "dpm++2m-sde",
}
"""Other names that are in use: this project's earlier one, and those of diffusers."""


def check_fits(
    name: SamplerName,
    *,
    spacing: StepSpacing = "uniform",
    eta: float | None = None,
    variance: VarianceName | None = None,
) -> None:
    """Refuse settings that a sampler does not have.

    Raises:
        ValueError: says which, and what to do.
    """
    # An option that a sampler would ignore is refused with the one that takes it.
    facts = SAMPLERS[name]
    given = {"eta": eta, "variance": variance}
    for option, value in given.items():
        if value is not None and option not in facts.takes:
            (owner,) = (other for other, its in SAMPLERS.items() if option in its.takes)
            raise ValueError(
                f"{facts.title} has no {option}: leave {option} out, or set sampler={owner}"
            )

    if spacing not in facts.spacings:
        raise ValueError(
            f"{facts.title} does not go with {spacing} spacing: "
            f"set spacing={' or '.join(facts.spacings)}, or another sampler"
        )
