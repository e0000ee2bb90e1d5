"""The short version of `scripts/torture.sh`."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "torture.py"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the harness kills forked processes")
@pytest.mark.parametrize("trial", ["points", "times", "mutations"])
def test_nothing_is_lost(trial):
    options = ["--only", trial, "--kills", "6", "--mutations", "400", "--every", "20"]
    command = [sys.executable, str(SCRIPT), *options]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    cases, lost = re.fullmatch(r"cases (\d+), lost (\d+)", done.stdout.splitlines()[-1]).groups()
    assert int(lost) == 0, done.stdout + done.stderr
    assert int(cases) >= 6
