"""clip-retrieval's own command line, whose servers listen on the loopback interface alone.

`clip-retrieval back` listens on every interface and has no option for that. Same arguments:

    VENV/bin/python infra/clip-retrieval/serve.py back --indices_paths indices.json --port 1234 ...
"""

from __future__ import annotations

from typing import Any

from clip_retrieval.cli import main
from flask import Flask

_run = Flask.run


def _run_on_loopback(app: Flask, host: str | None = None, **options: Any) -> None:
    del host
    _run(app, host="127.0.0.1", **options)


if __name__ == "__main__":
    Flask.run = _run_on_loopback  # type: ignore[method-assign]
    main()
