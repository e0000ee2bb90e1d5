#!/usr/bin/env bash
# All checks: installs mnet with the test tools into .venv, then style, types, imports, documentation
# and tests.
# Usage: scripts/test.sh [PYTEST OPTION …]
# "scripts/test.sh --cov" also measures coverage. It is an option because on Python 3.11 it takes
# 30% more processor time: the tests would need more than ten minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/install.sh test,docs # at once: pip changes no package while mypy reads them

echo "== ruff"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
# mypy uses one core for a minute, and the documentation the other.
echo "== mypy, in the background"
types="$(mktemp)"
.venv/bin/mypy >"$types" 2>&1 &
mypy=$!
trap 'kill "$mypy" 2>/dev/null || true; rm -f "$types"' EXIT
echo "== import-linter"
.venv/bin/lint-imports
./scripts/docs.sh
echo "== mypy"
wait "$mypy" || { cat "$types"; exit 1; }
cat "$types"
rm "$types"
trap - EXIT
echo "== pytest"
# Busy processes make idle OpenMP threads of others spin; passive waiting keeps the run short.
OMP_WAIT_POLICY=passive .venv/bin/python -m pytest -n auto --dist worksteal "$@"
