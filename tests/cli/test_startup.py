from __future__ import annotations

import subprocess
import sys

HEAVY = {"numpy", "pyarrow", "torch", "faiss", "dask", "prefect", "pandas", "matplotlib"}


def test_help_loads_no_heavy_library() -> None:
    program = f"import sys; from rdm.cli.main import build_app; build_app(); print(*({HEAVY} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
