#!/usr/bin/env bash
# From nothing to a prediction: installs mnet into .venv, draws the sample flowers, trains on
# them, evaluates and predicts. Needs Python 3.11 or newer and a package index, nothing else.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/install.sh
mnet=.venv/bin/mnet

echo "== drawing the sample data set"
"$mnet" data sample data_set/sample
echo "== training"
"$mnet" train --recipe quickstart
echo "== evaluating"
"$mnet" eval
echo "== predicting data_set/sample/tulip.jpg"
"$mnet" predict data_set/sample/tulip.jpg
