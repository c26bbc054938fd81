#!/usr/bin/env bash
# Make or update a virtual environment: install.sh PYTHON VENV LOCK STAMP (called by the Makefile).
# The stamp is written last, so an interrupted installation is noticed and made again from the start.
set -euo pipefail
python=$1 venv=$2 lock=$3 stamp=$4
mark="$venv/.unfinished"

version() { "$1" -c 'import platform; print(platform.python_version())' 2>/dev/null || true; }

found=$(version "$python")
if [ ! -f "$lock" ]; then
    echo "error: Python 3.11 or 3.12 is needed, $python is ${found:-not there}." >&2
    for name in python3.12 python3.11; do
        if [ -n "$(version "$name")" ]; then echo "       Here is one: make ... PYTHON=$name" >&2; fi
    done
    exit 2
fi
if [ -d "$venv" ] && [ -n "$(ls -A "$venv")" ] && [ ! -e "$venv/pyvenv.cfg" ] && [ ! -e "$mark" ]; then
    echo "error: $venv is not a virtual environment; name another folder: make ... VENV=.venv" >&2
    exit 2
fi
if [ -e "$mark" ] && kill -0 "$(cat "$mark")" 2>/dev/null; then
    echo "error: process $(cat "$mark") is making $venv; wait for it (or remove $mark)." >&2
    exit 2
fi

# The interpreter below the environment, because the environment may have to go.
base=$("$python" -c 'import sys; print(getattr(sys, "_base_executable", sys.executable))')
if [ -e "$mark" ] || [ "$(version "$venv/bin/python")" != "$found" ]; then rm -rf "$venv"; fi
echo "Installing $lock into $venv (Python $found): once, a few minutes, about 6 GB with CUDA."
mkdir -p "$venv"
echo $$ > "$mark"
rm -f "$venv"/.ready-*
"$base" -m venv "$venv"
quiet=$([ -t 1 ] || echo --quiet)
# The lock is complete, so nothing is left to resolve; what is imported is compiled then.
"$venv/bin/python" -m pip install --disable-pip-version-check --no-deps --no-compile $quiet -r "$lock"
mv "$mark" "$stamp"
