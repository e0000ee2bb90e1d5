#!/bin/sh
# Kill training thousands of times and damage its files; prints `cases N, lost 0`.
# Usage: scripts/torture.sh [--kills 2000] [--mutations 5000] [--seed 0]
set -eu
cd "$(dirname "$0")/.."
. scripts/install.sh
OMP_NUM_THREADS=1 .venv/bin/python scripts/torture.py "$@"
