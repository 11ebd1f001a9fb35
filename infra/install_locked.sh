#!/bin/sh
# Install a tool that the project's own environment cannot hold from its hashed lock into a virtual environment of its own:
# with uv where it is, else with uv from pip.
#   usage: install_locked.sh VENV LOCK      (PYTHON=python3.12 chooses the interpreter)
#   a lock is made in its folder: uv pip compile requirements.in --override overrides.txt --universal --generate-hashes \
#     --python-version 3.11 --no-emit-index-url -o requirements.lock      (overrides where there are any)
set -eu
venv=$1
lock=$2
python=${PYTHON:-python3}

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
echo "installing $lock into $venv"
"$uv" pip sync --quiet --python "$venv/bin/python" --require-hashes "$lock"
