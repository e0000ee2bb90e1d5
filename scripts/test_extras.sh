#!/usr/bin/env bash
# Tests of export for each extra, each in an environment of its own: some cannot share one.
# Usage: scripts/test_extras.sh [EXTRA …]
set -euo pipefail
cd "$(dirname "$0")/.."
for extra in "${@:-openvino}"; do
    echo "== $extra"
    environment=".venv-$extra"
    [ -x "$environment/bin/python" ] || "${PYTHON:-python3}" -m venv "$environment"
    "$environment/bin/python" -m pip install --quiet --disable-pip-version-check -e ".[$extra,test]"
    OMP_WAIT_POLICY=passive "$environment/bin/python" -m pytest tests/test_export.py tests/test_runtimes.py
done
