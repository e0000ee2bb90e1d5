#!/usr/bin/env bash
# All checks: installs mnet with what the tests need into .venv, then style, types and tests.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/install.sh test

echo "== ruff"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
echo "== mypy"
.venv/bin/mypy
echo "== pytest"
# Busy processes make idle OpenMP threads of others spin; passive waiting keeps the run short.
OMP_WAIT_POLICY=passive .venv/bin/python -m pytest -n auto --dist worksteal "$@"
