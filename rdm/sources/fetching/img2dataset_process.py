"""img2dataset's process: `python -m rdm.sources.fetching.img2dataset_process JOB.json`.

`img2dataset.run_img2dataset` starts it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any

from rdm.sources.http.client import FetchConfig, PatientOpener


def main() -> None:
    """Run the job, and end when the other end of standard input closes."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from img2dataset import download

    download(**_job()["img2dataset"])


def _job() -> dict[str, Any]:
    return json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))


def _end_with_parent() -> None:
    # The parent never writes: the read ends when it is gone, killed or not. img2dataset's own
    # processes would outlive it.
    os.read(sys.stdin.fileno(), 1)
    os.killpg(0, signal.SIGKILL)


if __name__ in ("__main__", "__mp_main__"):
    # img2dataset downloads in processes that multiprocessing spawns; these import this module as
    # `__mp_main__`.
    config = FetchConfig.model_validate(_job()["fetch"])
    urllib.request.install_opener(PatientOpener(config))  # type: ignore[arg-type]

if __name__ == "__main__":
    main()
