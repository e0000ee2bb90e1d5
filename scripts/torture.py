"""Kill training, damage its files, and count what was lost.

Usage: .venv/bin/python scripts/torture.py [--kills 2000] [--mutations 5000] [--seed 0]
                                           [--epochs 2] [--processes 20] [--every 1]
                                           [--only points|twice|disk|times|processes|mutations]

Six trials, on a tiny network and drawn photographs in a temporary folder:

1. points: a run is killed at its first, second, third … write (in the middle of large ones),
   sync, rename, link or removal, until none is left.
2. twice: so is the run that resumes it.
3. disk: each of them in turn fails for want of space.
4. times: a run is killed by SIGKILL at a random moment, again and again, until it is complete.
5. processes: of two processes that torchrun started, one is killed by SIGKILL at a write, sync,
   rename, link or removal, or in the middle of a step; torchrun starts both again.
6. mutations: checkpoints and images with a few bytes changed, cut or repeated.

`--every N` tries each N-th call only.

A case is lost if the checkpoint does not load, the resumed run ends with other weights than one
that was never stopped, a temporary file is left over, or damage raises anything but mnet's own
error. The last line is `cases N, lost M`; the exit code is 1 if M is not 0.
"""

import argparse
import csv
import errno
import hashlib
import io
import itertools
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # what children would import one by one
import torchvision.transforms.v2  # noqa: F401
from PIL import Image

from mnet_cli import cli
from mnet_cli.cli import console
from mnet_cli.data.images import decode_image
from mnet_cli.errors import MachineError, MnetError
from mnet_cli.formats.checkpoint import build_from, load_checkpoint
from mnet_cli.recipe import load_recipe
from mnet_cli.training.batches import TrainBatch
from mnet_cli.training.prepare import prepare_data, prepare_job
from mnet_cli.training.resume import resume_job
from mnet_cli.training.summary import write_results
from mnet_cli.training.trainer import Trainer

RECIPE = """\
schema: 1
model: {arch: mobilenet_v2, width_mult: 0.35, weights: none, freeze: "features[:14]"}
data: {root: ROOT, image_size: 32, batch_size: 4, workers: 0, cached_views: EPOCHS}
train: {epochs: EPOCHS, lr: 3.0e-3, ema: 0.9, save_minutes: 1.0e-5}
"""
CALLS = ("fsync", "replace", "rename", "unlink", "mkdir", "rmdir", "symlink")  # of the module os
LARGE = 1000  # bytes or characters of a write that is cut in two
COMPLETE, BROKEN = 0, 3


def draw(root: Path) -> None:
    """Write a data set of two colours."""
    noise = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        for name, colour in (("blue", (40, 60, 200)), ("red", (200, 50, 40))):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = noise.normal(colour, 25, (40, 40, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.jpg")


def train(run: Path, recipe: Path) -> None:
    """Begin a run or go on with it, to its end."""
    device = torch.device("cpu")
    resolved = load_recipe(recipe)
    data = prepare_data(resolved)
    if (run / "recipe.yaml").exists():
        job = resume_job(resolved, data, device, run)
    else:
        shutil.rmtree(run, ignore_errors=True)
        job = prepare_job(resolved, data, device, run)
    write_results(job, Trainer(job).fit())


def in_child(work: Callable[[], object]) -> int:
    """Run `work` in a process of its own; its exit code, or minus the signal that ended it."""
    process = os.fork()
    if process:
        _, status = os.waitpid(process, 0)
        return os.waitstatus_to_exitcode(status)
    os._exit(code_of(work))


def code_of(work: Callable[[], object]) -> int:
    """Run `work` in this process; the exit code that the command line would give."""
    try:
        work()
    except (MachineError, OSError):  # the command line makes a MachineError of the latter
        return MachineError.exit_code
    except BaseException as error:
        sys.stderr.write(f"torture: {type(error).__name__}: {error}\n")
        return BROKEN
    return COMPLETE


def at_call(number: int, act: Callable[[], object]) -> None:
    """Make this process call `act` at its `number`-th call that changes the disk.

    That is before a call of `CALLS`, before a file is opened for writing, and in the middle of
    a large write.
    """
    left = number

    def is_due() -> bool:
        nonlocal left
        left -= 1
        return left == 0

    def counted(call: Callable[..., object]) -> Callable[..., object]:
        def counting(*arguments: object, **options: object) -> object:
            if is_due():
                act()
            return call(*arguments, **options)

        return counting

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
    opens = io.open

    def opening(file: object, mode: str = "r", *arguments: object, **options: object) -> object:
        if not set(mode) & set("wxa+"):
            return opens(file, mode, *arguments, **options)  # type: ignore[call-overload]
        if is_due():
            act()
        opened = opens(file, mode, *arguments, **options)  # type: ignore[call-overload]
        whole = opened.write

        def write(content: Any) -> int:
            if len(content) >= LARGE and is_due():
                whole(content[: len(content) // 2])
                opened.flush()
                act()
            return int(whole(content))

        opened.write = write
        return opened

    io.open = opening  # type: ignore[assignment]  # what pathlib opens with


def kill_self() -> None:
    """End as a crash would."""
    os.kill(os.getpid(), signal.SIGKILL)


def no_space() -> None:
    """Fail as a full disk does."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def digest(run: Path) -> str:
    """Of the weights in both checkpoints, and of the epochs in the table."""
    found = hashlib.sha256()
    with (run / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            found.update(f"{row['epoch']} {row['train_loss']} {row['val_loss']}".encode())
    for name in ("best.pt", "last.pt"):
        for key, tensor in load_checkpoint(run / name).state_dict.items():
            found.update(key.encode() + tensor.numpy().tobytes())
    return found.hexdigest()


class Trials:
    """The count of cases and losses, and the run they are compared with."""

    def __init__(self, folder: Path, epochs: int, every: int) -> None:
        self.folder, self.recipe, self.every = folder, folder / "tiny.yaml", every
        self.cases = self.lost = 0
        draw(folder / "photos")
        recipe = RECIPE.replace("ROOT", str(folder / "photos")).replace("EPOCHS", str(epochs))
        self.recipe.write_text(recipe)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        assert in_child(lambda: train(folder / "whole", self.recipe)) == COMPLETE
        self.expected = self.digest_of(folder / "whole")
        assert self.expected

    def digest_of(self, run: Path) -> str:
        """The digest of a run, by a process of its own: this one computes nothing, so it forks."""
        out = self.folder / "digest"
        out.unlink(missing_ok=True)
        in_child(lambda: out.write_text(digest(run)))
        return out.read_text() if out.exists() else ""

    def judge(self, name: str, run: Path) -> None:
        """Resume a run to its end and compare."""
        self.cases += 1
        code = in_child(lambda: train(run, self.recipe))
        left = [path.name for path in run.rglob("*.tmp")]
        if code != COMPLETE or self.digest_of(run) != self.expected or left:
            self.lost += 1
            console.line(f"lost: {name}: exit {code}, left over {left}")
        shutil.rmtree(run, ignore_errors=True)

    def forget(self) -> None:
        """Empty the cache, so that it is written again."""
        shutil.rmtree(self.folder / "cache", ignore_errors=True)

    def every_point(self, act: Callable[[], object], name: str, *, twice: bool = False) -> None:
        """Stop a run at each of its calls in turn; and, if `twice`, the resumed run too."""
        run, reached = self.folder / "run", self.folder / "reached"
        for number in itertools.count(1, self.every):
            self.forget()

            def stopped(number: int = number) -> None:
                at_call(number, lambda: (reached.touch(), act()))
                train(run, self.recipe)

            reached.unlink(missing_ok=True)
            code = in_child(stopped)
            if not reached.exists():
                shutil.rmtree(run, ignore_errors=True)
                return
            if code == BROKEN:
                self.lost += 1
                console.line(f"lost: {name} {number}: neither done nor the machine's fault")
            if twice and run.exists():
                in_child(lambda n=number: (at_call(n % 30 + 1, act), train(run, self.recipe)))
            self.judge(f"{name} {number}", run)

    def random_times(self, kills: int, chance: random.Random) -> None:
        """Kill at random moments until the run is complete."""
        run, killed = self.folder / "run", 0
        while killed < kills:
            self.forget()
            while killed < kills:
                process = os.fork()
                if not process:
                    os._exit(code_of(lambda: train(run, self.recipe)))
                time.sleep(chance.uniform(0.02, 0.6))
                os.kill(process, signal.SIGKILL)
                _, status = os.waitpid(process, 0)
                code = os.waitstatus_to_exitcode(status)
                if code == COMPLETE:
                    break
                if code != -signal.SIGKILL:
                    self.lost += 1
                    console.line(f"lost: random times: exit {code}")
                killed += 1
                self.cases += 1
            if run.exists():
                self.judge("random times", run)

    def processes(self, count: int, chance: random.Random) -> None:
        """Kill one of two processes, which torchrun then starts again."""
        self.forget()
        whole = self.folder / "whole of two"
        assert self.launch(whole, "") == COMPLETE
        expected = self.digest_of(whole)
        for _ in range(count):
            self.forget()
            rank, kind = chance.choice((0, 1)), chance.choice(("call", "step"))
            victim = f"{rank} {kind} {chance.randint(1, 60 if kind == 'call' else 6)}"
            run = self.folder / "run"
            code = self.launch(run, victim)
            self.cases += 1
            left = [path.name for path in run.rglob("*.tmp")]
            if code != COMPLETE or self.digest_of(run) != expected or left:
                self.lost += 1
                console.line(f"lost: process {victim}: exit {code}, left over {left}")
            shutil.rmtree(run, ignore_errors=True)

    def launch(self, run: Path, victim: str) -> int:
        """Train with two processes, of which one is killed; the exit code of torchrun."""
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        options = ["--nproc-per-node", "2", "--max-restarts", "3", __file__, "--victim", victim]
        done = subprocess.run(
            [*launcher, *options, "train", str(self.recipe), "--out", str(run)],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if done.returncode:
            console.line(done.stderr)
        return done.returncode

    def mutations(self, count: int, chance: random.Random) -> None:
        """Feed damaged checkpoints and images to their loaders."""
        checkpoint = (self.folder / "whole" / "best.pt").read_bytes()
        image = next((self.folder / "photos").rglob("*.jpg")).read_bytes()
        result = self.folder / "mutations"

        def feed() -> None:
            resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
            damaged, lost = self.folder / "damaged.pt", 0
            for _ in range(count // 2):
                damaged.write_bytes(mutated(checkpoint, chance))
                lost += survives(lambda: build_from(load_checkpoint(damaged)))
            for _ in range(count - count // 2):
                content = mutated(image, chance)
                lost += survives(lambda content=content: decode_image(content, "damaged"))
            result.write_text(str(lost))

        code = in_child(feed)
        self.cases += count
        self.lost += int(result.read_text()) if code == COMPLETE else count


def survives(load: Callable[[], object]) -> int:
    """1 if anything but mnet's own error leaves the loader, or it takes too long."""
    started = time.monotonic()
    try:
        load()
    except MnetError:
        pass
    except BaseException as error:
        console.line(f"lost: {type(error).__name__}: {error}")
        return 1
    return int(time.monotonic() - started > 5)


def mutated(content: bytes, chance: random.Random) -> bytes:
    """A copy with some bytes changed, cut out or repeated."""
    damaged = bytearray(content)
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(len(damaged))
        length = min(chance.choice((1, 1, 4, 64, 4096)), len(damaged) - at)
        kind = chance.randrange(4)
        if kind == 0:
            damaged[at : at + length] = chance.randbytes(length)
        elif kind == 1 and len(damaged) > length + 1:
            del damaged[at : at + length]
        elif kind == 2:
            damaged[at:at] = damaged[at : at + length]
        else:
            damaged = damaged[: max(1, at)]
    return bytes(damaged)


def be_victim(victim: str, arguments: list[str]) -> None:
    """Be one of the processes of `Trials.processes`: run mnet, and perhaps be killed.

    Args:
        victim: The rank that is killed, `call` or `step`, and at which of them; or empty.
        arguments: Of mnet.
    """
    rank, kind, number = (victim or "none call 0").split()
    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if first and rank == os.environ["RANK"] and kind == "call":
        at_call(int(number), kill_self)
    elif first and rank == os.environ["RANK"]:
        steps, step = itertools.count(1), Trainer.step

        def counted(trainer: Trainer, batch: TrainBatch) -> None:
            if next(steps) == int(number):
                kill_self()
            step(trainer, batch)

        Trainer.step = counted
    sys.argv = ["mnet", *arguments]
    cli.main()


def main() -> None:
    """Read the command line, run the trials, print the count."""
    if sys.argv[1:2] == ["--victim"]:
        be_victim(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(description="Kill training and damage its files.")
    parser.add_argument("--kills", type=int, default=2000)
    parser.add_argument("--mutations", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--processes", type=int, default=20)
    parser.add_argument("--every", type=int, default=1)
    names = ("points", "twice", "disk", "times", "processes", "mutations")
    parser.add_argument("--only", choices=names)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        trials = Trials(Path(folder), options.epochs, options.every)
        for name, title, work in (
            ("points", "killed at every point", lambda: trials.every_point(kill_self, "point")),
            (
                "twice",
                "and the resumed run too",
                lambda: trials.every_point(kill_self, "points", twice=True),
            ),
            ("disk", "disk full at every point", lambda: trials.every_point(no_space, "disk")),
            (
                "times",
                "killed at random times",
                lambda: trials.random_times(options.kills, chance),
            ),
            (
                "processes",
                "one of two processes killed",
                lambda: trials.processes(options.processes, chance),
            ),
            ("mutations", "damaged files", lambda: trials.mutations(options.mutations, chance)),
        ):
            if options.only not in (None, name):
                continue
            cases, lost = trials.cases, trials.lost
            work()
            console.line(f"{title}: cases {trials.cases - cases}, lost {trials.lost - lost}")
    console.line(f"cases {trials.cases}, lost {trials.lost}")
    sys.exit(trials.lost > 0)


if __name__ == "__main__":
    main()
