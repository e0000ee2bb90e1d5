# Sourced by the other scripts: makes .venv if there is none and installs mnet into it.
# Usage: . scripts/install.sh [EXTRA]   in the project's folder; PYTHON names the interpreter.
if [ ! -x .venv/bin/python ]; then
    echo "== making .venv"
    "${PYTHON:-python3}" -m venv .venv
fi
echo "== installing mnet${1:+ with the extra \"$1\"} (the first time, torch takes some minutes)"
.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".${1:+[$1]}"
