#!/usr/bin/env bash
# Build the documentation into build/site; a warning, such as a broken link, is an error.
# Usage: scripts/docs.sh [serve]    serve: show it at http://localhost:8000 and follow changes
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/install.sh docs

echo "== pages that derive from the code"
.venv/bin/python scripts/docs.py build/docs
echo "== site"
.venv/bin/zensical "${1:-build}" $([ "${1:-build}" = serve ] || echo "--strict --clean")
