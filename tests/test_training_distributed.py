"""Training by several processes that torchrun starts; with gloo, on the CPU."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import pytest
import torch

from mnet_cli.cli import run
from mnet_cli.system.process_group import ProcessGroup, join_group
from mnet_cli.training.distributed import images_of, part_of

QUIET = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
LIMIT = 120  # seconds; a group that waits for a process that has ended would never end


def torchrun(*arguments, processes=2, **options):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.Popen(
        [*launcher, "--nproc-per-node", str(processes), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | QUIET,
        **options,
    )


def finish(process):
    out, err = process.communicate(timeout=LIMIT)
    return process.returncode, out, err


def tensors(run_directory):
    return torch.load(run_directory / "best.pt", weights_only=True)["state_dict"]


def wait_for(condition):
    ends = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < ends, "it does not happen"
        time.sleep(0.05)


def summary_of(run_directory):
    return json.loads((run_directory / "summary.json").read_text(encoding="utf-8"))


def errors_of(err):
    return [line for line in err.splitlines() if line.startswith("mnet: error:")]


class Fixed(ProcessGroup):
    def __init__(self, rank, size):
        self.rank, self.size = rank, size


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("total", [1, 2, 7, 8, 33])
def test_processes_divide_images_among_them(total, size):
    parts = [part_of(total, Fixed(rank, size)) for rank in range(size)]
    scored = [list(images_of(total, Fixed(rank, size))) for rank in range(size)]
    assert list(chain(*scored)) == list(range(total))
    assert all(part.total == total and len(part.indices()) >= 1 for part in parts)
    if total < size:
        assert all(part.is_whole for part in parts)
    else:
        assert list(chain(*(part.indices() for part in parts))) == list(range(total))
        assert {len(part.indices()) for part in parts} <= {total // size, total // size + 1}


def test_steps_of_three_processes_are_those_of_one():
    program = Path(__file__).with_name("distributed_step.py")
    code, out, err = finish(torchrun(program, 3, processes=3))
    assert code == 0, err
    assert out == "as one process\n"


def test_a_frozen_run_of_two_processes_has_the_bits_of_one(tiny_recipe, tmp_path):
    frozen = ["--set", "model.freeze=features", "--set", "data.batch_size=7"]
    train = ["train", str(tiny_recipe), *frozen]
    assert run([*train, "--out", str(tmp_path / "one"), "-q"]) == 0
    shutil.rmtree(os.environ["XDG_CACHE_HOME"])
    two = ["--out", tmp_path / "two", "--json"]
    code, out, err = finish(torchrun("-m", "mnet_cli", *train, *two))
    assert code == 0, err
    assert json.loads(out)["processes"] == 2  # one document, of one process
    assert err.count("epoch  train loss") == 1
    one, other = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    assert all(torch.equal(one[name], other[name]) for name in one)
    [cache] = json.loads(out)["cache"]
    rows = sum(1 for _ in (Path(os.environ["XDG_CACHE_HOME"])).rglob("*.npy"))
    assert cache["fresh"] == cache["rows"]
    assert rows >= 2, "each process writes what it computed"


def test_a_signal_to_one_process_stops_all_and_one_process_goes_on(tiny_recipe, tmp_path):
    out = tmp_path / "run"
    recipe = [tiny_recipe, "--set", "train.epochs=12", "--set", "data.batch_size=7"]
    process = torchrun("-m", "mnet_cli", "train", *recipe, "--out", out)
    wait_for((out / "metrics.csv").exists)
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    os.kill(int(children[1]), signal.SIGTERM)
    _, _, err = finish(process)
    assert summary_of(out)["exit_code"] == 143
    assert len(errors_of(err)) == 1 and "--resume" in errors_of(err)[0]
    step = torch.load(out / "last.pt", weights_only=True)["step"]
    resumed = subprocess.run(
        [sys.executable, "-m", "mnet_cli", "train", "--resume", str(out)],
        capture_output=True, text=True, timeout=LIMIT, env=os.environ | QUIET,
    )  # fmt: skip
    assert resumed.returncode == 0, resumed.stderr
    assert f"at step {step}\n" in resumed.stderr
    assert "note: the number of processes was 2 and is 1 now" in resumed.stderr
    assert summary_of(out)["epochs"] == 12 and summary_of(out)["exit_code"] == 0


def test_an_error_of_one_process_ends_all_with_its_code(tiny_recipe, tmp_path, draw_photos):
    root = draw_photos(tmp_path / "photos", train=8, val=4)
    out = tmp_path / "run"
    longer = ["--set", "train.epochs=500", "--set", f"data.root={root}"]
    process = torchrun("-m", "mnet_cli", "train", tiny_recipe, *longer, "--out", out)
    wait_for((out / "metrics.csv").exists)
    (root / "train" / "red" / "3.jpg").unlink()
    started = time.monotonic()
    _, _, err = finish(process)
    assert time.monotonic() - started < 30
    assert summary_of(out)["exit_code"] == 3
    assert "3.jpg" in summary_of(out)["error"]
    [line] = errors_of(err)
    assert "3.jpg" in line
    assert (out / "last.pt").exists()


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2: a launcher started 2 processes"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "OMPI_COMM_WORLD_SIZE=4: mpirun started 4 processes"),
        ({"SLURM_STEP_NUM_TASKS": "2"}, "SLURM_STEP_NUM_TASKS=2: srun started 2 processes"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR and MASTER_PORT not set"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2: not below WORLD_SIZE=2"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK=x: not a number"),
    ],
)
def test_a_launcher_that_does_not_say_who_is_who_is_refused(
    tiny_recipe, tmp_path, monkeypatch, capsys, variables, says
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert run(["train", str(tiny_recipe), "--out", str(tmp_path / "run")]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert says in last and "torchrun" in last
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("variables", [{}, {"WORLD_SIZE": "1"}, {"WORLD_SIZE": "x"}])
def test_a_process_that_is_alone_needs_no_launcher(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert join_group().size == 1
