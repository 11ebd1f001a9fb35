"""One rank of a training job, as DeepSpeed's launcher starts it."""

from __future__ import annotations

import argparse
import json
import logging
import os
import threading
import time
from pathlib import Path

import torch
from pydantic import ValidationError

from rdm.errors import RdmError, TrainingError
from rdm.storage.files import atomic_path
from rdm.training.config import TrainConfig, TrainInputs
from rdm.training.engine.training_device import training_device
from rdm.training.job.devices import tell_device
from rdm.training.job.job_errors import record_error
from rdm.training.job.machine import NODE_VARIABLE, OWNER_VARIABLE
from rdm.training.loop import train
from rdm.training.open_run import open_run

RUN_FILE = "run.json"

logger = logging.getLogger(__name__)


def write_run(out: Path, config: TrainConfig, inputs: TrainInputs) -> None:
    """Write what a rank needs to know."""
    out.mkdir(parents=True, exist_ok=True)
    run = {"config": config, "inputs": inputs}
    text = json.dumps({name: part.model_dump(mode="json") for name, part in run.items()}, indent=1)
    with atomic_path(out / RUN_FILE) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_run(out: Path) -> tuple[TrainConfig, TrainInputs]:
    """Return what `write_run` wrote.

    Raises:
        TrainingError: a setting was changed there to what is refused.
    """
    run = json.loads((out / RUN_FILE).read_text(encoding="utf-8"))
    try:
        return TrainConfig.model_validate(run["config"]), TrainInputs.model_validate(run["inputs"])
    except ValidationError as error:
        raise TrainingError(
            f"the run was made with a setting that is refused: {error.errors()[0]['msg']}",
            where=out / RUN_FILE,
            fix="mend it there; zero_stage may change within a run",
        ) from error


def main() -> None:
    """Train as the rank that the launcher's environment says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, required=True, help="the run's folder, with its run.json"
    )
    out: Path = parser.parse_args().out

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    _die_with_owner()
    config, inputs = read_run(out)
    torch.manual_seed(config.seed)  # every rank builds the same weights

    try:
        device = training_device(config)
        if NODE_VARIABLE in os.environ and os.environ["LOCAL_RANK"] == "0":
            tell_device(out, int(os.environ[NODE_VARIABLE]), device.type)
        data, objective = open_run(config, inputs)
        train(config, data, objective, out)
    except RdmError as error:
        logger.error("%s", error)
        record_error(out, error)
        raise SystemExit(str(error)) from error


def _die_with_owner() -> None:
    """End this rank when the process that launched the job is gone, however it ended."""
    owner = os.environ.get(OWNER_VARIABLE)
    if owner is None:
        return

    def watch() -> None:
        while Path(f"/proc/{owner}").exists():
            time.sleep(1)
        # Not sys.exit: it ends this thread only, and the main one may hang in a collective.
        os._exit(1)

    if Path("/proc/self").exists():
        threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main()
