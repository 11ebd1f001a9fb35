"""A running training in the Prefect UI: its numbers, time left and newest grid."""

from __future__ import annotations

import base64
import time
from pathlib import Path

from prefect.artifacts import create_image_artifact, create_markdown_artifact

from rdm.training.job.status import RunStatus, read_status

PUBLISH_SECONDS = 30.0
KEY = "training"
GRID_KEY = "training-samples"


class TrainingArtifacts:
    """Publishes a run's status at most every half minute, and each grid once."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._published = float("-inf")
        self._grid: str | None = None

    def update(self) -> None:
        """Publish if the last time is long enough ago."""
        if time.monotonic() - self._published >= PUBLISH_SECONDS:
            self.publish()

    def publish(self) -> None:
        """Publish the run as it is now."""
        self._published = time.monotonic()
        status = read_status(self._out)
        create_markdown_artifact(
            key=KEY, markdown=_markdown(status), description=f"{status.recipe} in {status.out}"
        )

        # A grid is an image of its own, and does not change.
        if status.grid is not None and status.grid != self._grid:
            self._grid = status.grid
            # Inside the artifact: who looks at the UI may not reach the run's folder.
            encoded = base64.b64encode(Path(status.grid).read_bytes()).decode("ascii")
            create_image_artifact(
                key=GRID_KEY,
                image_url=f"data:image/png;base64,{encoded}",
                description=Path(status.grid).stem,
            )


def _markdown(status: RunStatus) -> str:
    left = "" if status.seconds_left is None else f", {status.seconds_left / 60:.1f} min left"
    numbers = {
        "step": f"{status.step} of {status.max_steps}{left}",
        "loss": None if status.loss is None else f"{status.loss:.6g} `{status.sparkline}`",
        "samples per second": status.samples_per_second,
        "learning rate": status.learning_rate,
        "gradient norm": status.gradient_norm,
        "last checkpoint": status.checkpoint_step,
    }

    rows = [
        f"| {name} | {value if isinstance(value, str | int) else f'{value:.6g}'} |"
        for name, value in numbers.items()
        if value is not None
    ]
    return f"# {status.recipe}: {status.health}\n\n| | |\n|---|---|\n" + "\n".join(rows) + "\n"
