#!/usr/bin/env bash
# All checks: installs mnet with the test tools into .venv, then style, types, imports, documentation
# and tests.
# Usage: scripts/test.sh [PYTEST OPTION …]
# "scripts/test.sh --cov" also measures coverage. It is an option because on Python 3.11 it takes
# 30% more processor time: the tests would need more than ten minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/install.sh test

echo "== ruff"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
echo "== mypy"
.venv/bin/mypy
echo "== import-linter"
.venv/bin/lint-imports
./scripts/docs.sh
echo "== pytest"
# Busy processes make idle OpenMP threads of others spin; passive waiting keeps the run short.
OMP_WAIT_POLICY=passive .venv/bin/python -m pytest -n auto --dist worksteal "$@"
