#!/usr/bin/env bash
# Write requirements/py311.txt and py312.txt anew from pyproject.toml: lock.sh PYTHON (called by `make lock`).
# uv resolves for every platform at once; environment markers keep what only one platform needs.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=.venv-lock
[ -x "$tools/bin/uv" ] || { "$1" -m venv "$tools" && "$tools/bin/pip" install --quiet uv; }

for python in 3.11 3.12; do
    file="requirements/py${python/./}.txt"
    "$tools/bin/uv" pip compile pyproject.toml --universal --upgrade --python-version "$python" \
        --extra dev --extra slurm --extra download --extra actionformer --extra sgear --extra lego \
        --no-emit-index-url --no-header --no-annotate --quiet --output-file "$file"
done
# The file of 3.11 also answers for later Pythons; those have a file of their own.
sed -i.old -e "/ ; python_full_version >= '3.12'/d" -e "s/ ; python_full_version < '3.12'\$//" \
    -e "s/python_full_version < '3.12' and //" requirements/py311.txt
rm -f requirements/py311.txt.old
