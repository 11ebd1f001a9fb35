"""Why a training job ended, written down below its folder for whoever asks later."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from rdm.errors import RdmError
from rdm.storage.files import atomic_path

ERROR_FILE = "error.json"

logger = logging.getLogger(__name__)


def read_error(out: Path) -> dict[str, str] | None:
    """Return the error that ended the job: `kind`, `what`, `where` and `fix`."""
    try:
        return json.loads((out / ERROR_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def record_error(out: Path, error: RdmError) -> None:
    """Write down what ended the job; where the disk is full, the log has to do."""
    found = {
        "kind": type(error).__name__,
        "what": error.what,
        "where": str(error.where),
        "fix": error.fix,
    }
    try:
        with atomic_path(out / ERROR_FILE) as temporary:
            temporary.write_text(json.dumps(found), encoding="utf-8")
    except RdmError as failed:
        logger.error("%s", failed)
