#!/usr/bin/env bash
# Tests of each extra, each in an environment of its own: some cannot share one.
# Usage: scripts/test_extras.sh [EXTRA …]
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- openvino tflite executorch coreml mlflow ray
for extra in "$@"; do
    echo "== $extra"
    environment=".venv-$extra"
    [ -x "$environment/bin/python" ] || "${PYTHON:-python3}" -m venv "$environment"
    "$environment/bin/python" -m pip install --quiet --disable-pip-version-check -e ".[$extra,test]"
    case $extra in
    mlflow) "$environment/bin/python" -m pip install --quiet mlflow # for its server
        tests=(-m mlflow tests/test_report_mlflow.py) ;;
    ray) tests=(-m ray tests/test_system_cluster.py) ;;
    *) tests=(tests/test_export.py tests/test_formats_load.py) ;;
    esac
    # -p: a plugin that comes with litert-torch trips over the newest pytest
    OMP_WAIT_POLICY=passive "$environment/bin/python" -m pytest -p no:anyio "${tests[@]}"
done
