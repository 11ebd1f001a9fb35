#!/bin/sh
# Install the locked environment and the project into a virtual environment: with uv where it is, else with uv from pip.
#   usage: install.sh VENV      (PYTHON=python3.12 chooses the interpreter)
set -eu
venv=$1
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || {
    echo "error: $("$python" --version) is too old or too new" >&2
    echo "  fix:   install Python 3.11, 3.12 or 3.13, or name one: make PYTHON=python3.12" >&2
    exit 2
}

if command -v uv >/dev/null 2>&1; then
    uv=uv
else
    echo "installing uv with pip into $venv.tools"
    "$python" -m venv "$venv.tools"
    "$venv.tools/bin/python" -m pip install --quiet --disable-pip-version-check uv
    uv=$venv.tools/bin/uv
fi

[ -x "$venv/bin/python" ] || "$uv" venv --quiet --python "$python" "$venv"
echo "installing the locked packages into $venv (about 8 GB with the accelerator libraries that torch brings)"
# Bytecode and the compiled loops of exact search are made here, once, and not by each process that can't keep what it
# made: in read-only images, and by workers that start together.
"$uv" pip sync --quiet --compile-bytecode --python "$venv/bin/python" --require-hashes requirements.lock
"$uv" pip install --quiet --python "$venv/bin/python" --no-deps --editable .
"$venv/bin/python" -m compileall -q rdm flows
"$venv/bin/python" -c "import rdm.database.search.kernels"
