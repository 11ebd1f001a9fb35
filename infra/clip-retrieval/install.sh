#!/bin/sh
# Install clip-retrieval from its own hashed lock into a virtual environment of its own: with uv where it is, else uv from pip.
#   usage: install.sh VENV      (PYTHON=python3.12 chooses the interpreter)
#   lock:  uv pip compile requirements.in --override overrides.txt --universal --generate-hashes --python-version 3.11 \
#            --no-emit-index-url -o requirements.lock
set -eu
venv=$1
python=${PYTHON:-python3}
here=$(dirname "$0")

if command -v uv >/dev/null 2>&1; then
    uv=uv
else
    [ -x "$venv.tools/bin/uv" ] || {
        "$python" -m venv "$venv.tools"
        "$venv.tools/bin/python" -m pip install --quiet --disable-pip-version-check uv
    }
    uv=$venv.tools/bin/uv
fi

[ -x "$venv/bin/python" ] || "$uv" venv --quiet --python "$python" "$venv"
echo "installing clip-retrieval into $venv (about 6 GB with the accelerator libraries that torch brings)"
"$uv" pip sync --quiet --python "$venv/bin/python" --require-hashes "$here/requirements.lock"
