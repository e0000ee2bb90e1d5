#!/usr/bin/env bash
# Build the documentation into build/site; a warning, such as a broken link, is an error.
# Usage: scripts/docs.sh [serve]    serve: show it at http://localhost:8000
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/install.sh docs

export NO_MKDOCS_2_WARNING=1 # not about this build

echo "== pages that derive from the code"
.venv/bin/python scripts/docs.py build/docs
echo "== site"
if [ "${1:-}" = serve ]; then
    exec .venv/bin/mkdocs serve
fi
.venv/bin/mkdocs build --strict
if grep -rnoE '<(script|img|iframe|link)[^>]* (src|href)="?(https?:)?//[^ >]*' build/site --include='*.html'; then
    echo "docs: a page loads the addresses above. Pages must not need a network." >&2
    exit 1
fi
