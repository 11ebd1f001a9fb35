"""What may be changed about a quickstart, and where it puts things; nothing here needs Prefect."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from rdm.config import Config
from rdm.report.quickstart.showcase import ShowcaseConfig
from rdm.sampling import SampleSettings

FINE_TUNING = (
    "objective.start=assets://rdm-64",
    "objective.held_out_fraction=0.25",
    "max_steps=60",
    "batch_size=32",
    "learning_rate=2e-4",
    "lr_schedule=cosine",
    "warmup_steps=10",
    "ema_decay=0.9",
    "log_every=5",
    "checkpoint_every=20",
)
"""Settings of the recipe rdm-64 for a minute of fine-tuning on a few hundred photographs."""


OF_FINE_TUNED = SampleSettings(
    num_steps=30, eta=0.0, guidance_scale=3.0, guidance_interval=(-5.0, 2.0), batch_size=32
)
"""How pictures of the fine-tuned model are drawn: its null context was trained, so guidance may be
strong."""


class QuickstartConfig(Config):
    """What may be changed about a quickstart."""

    from_scratch: bool = Field(
        default=False,
        description="train rdm-tiny from random weights, and do not fine-tune the model that ships",
    )
    train: tuple[str, ...] = Field(default=(), description="settings of the recipe, as key=value")
    showcase: ShowcaseConfig = ShowcaseConfig()
    evaluate: tuple[str, ...] = Field(
        default=("num_draws=16", "num_samples=64", "num_reference=128", "settings.num_steps=50"),
        description="settings of the evaluation, as key=value",
    )

    @property
    def recipe(self) -> str:
        """The recipe that is trained."""
        return "rdm-tiny" if self.from_scratch else "rdm-64"

    @property
    def autoencoder(self) -> str:
        """The first stage of its latents."""
        return "assets://autoencoder-kl-f4" if self.from_scratch else "assets://rdm-64/first_stage"

    @property
    def overrides(self) -> tuple[str, ...]:
        """The settings of that recipe."""
        return self.train if self.from_scratch else (*FINE_TUNING, *self.train)


@dataclass(frozen=True)
class Layout:
    """Where a quickstart puts things."""

    root: Path

    @property
    def database(self) -> Path:
        """The database of photographs of birds, one half of them."""
        return self.root / "database"

    @property
    def swapped(self) -> Path:
        """The database of paintings."""
        return self.root / "database-swapped"

    @property
    def cache(self) -> Path:
        """The latents."""
        return self.root / "cache"

    @property
    def run(self) -> Path:
        """The training run."""
        return self.root / "run"

    @property
    def samples(self) -> Path:
        """The pictures of the report."""
        return self.root / "samples"

    @property
    def evaluation(self) -> Path:
        """The measurements."""
        return self.root / "evaluation"

    @property
    def stages(self) -> Path:
        """What each stage took."""
        return self.root / "stages"

    @property
    def prefect(self) -> Path:
        """Files of the temporary Prefect server."""
        return self.root / ".prefect"

    @property
    def report(self) -> Path:
        """The page."""
        return self.root / "report.html"
