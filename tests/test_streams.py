"""What a command does when stdout, stderr or stdin is closed or full."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mnet_cli.cli import run
from mnet_cli.formats.checkpoint import load_checkpoint

PROGRAM = "from mnet_cli.cli import main; main()"
FULL = Path("/dev/full")
NO_SPACE = "mnet: error: stdout: cannot be written (No space left on device). Free some space"
LIGHT = (["recipes", "list"], ["recipes", "schema"], ["--version"], ["--help"], ["train", "--help"])

needs_full = pytest.mark.skipif(not FULL.exists(), reason="the system has no /dev/full")
posix_shell = pytest.mark.skipif(os.name != "posix", reason="a shell closes the streams")


@pytest.fixture(autouse=True)
def own_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


class ReaderLeaves(io.TextIOWrapper):
    """A pipe whose reader leaves when it has seen `marker`; "" leaves at once."""

    def __init__(self, marker: str) -> None:
        self.reader, writer = os.pipe()
        super().__init__(io.FileIO(writer, "w"), encoding="utf-8", write_through=True)
        self.marker, self.seen = marker, ""
        self.write("")

    def write(self, text: str) -> int:
        count = super().write(text)
        self.seen += text
        if self.reader is not None and self.marker in self.seen:
            self.flush()
            os.close(self.reader)
            self.reader = None
        return count


@pytest.fixture
def replace_streams(monkeypatch, tmp_path):
    """Put streams in the place of stdout and stderr; files where none are given.

    Pytest's own have no descriptor, which all streams of a process have.
    """
    opened = []

    def replace(stdout=None, stderr=None):
        for name, stream in (("stdout", stdout), ("stderr", stderr)):
            opened.append(stream or (tmp_path / name).open("w+", encoding="utf-8"))
            monkeypatch.setattr(sys, name, opened[-1])

    yield replace
    for stream in opened:
        stream.close()


def text_of(stream) -> str:
    stream.seek(0)
    return stream.read()


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory):
    """A run of one epoch whose top-1 is below 1."""
    folder = tmp_path_factory.mktemp("finished")
    recipe = folder / "tiny.yaml"
    recipe.write_text(
        "schema: 1\n"
        "model: {arch: mobilenet_v2, width_mult: 0.35, weights: none}\n"
        f"data: {{root: {photos}, image_size: 32, batch_size: 8, workers: 0}}\n"
        "train: {epochs: 1, lr: 1.0e-9}\n"
    )
    assert run(["train", "-r", str(recipe), "--out", str(folder / "run"), "--quiet"]) == 0
    assert json.loads((folder / "run" / "summary.json").read_text())["best"]["top1"] < 1
    return folder / "run"


@pytest.mark.parametrize("shared", [True, False])
def test_training_whose_news_nobody_reads_stops_with_its_state(
    shared, tiny_recipe, tmp_path, monkeypatch, replace_streams
):
    out = tmp_path / "run"
    stderr = ReaderLeaves("1/3")
    replace_streams(stderr if shared else None, stderr)
    command = ["train", "-r", str(tiny_recipe), "--set", "train.epochs=3", "--out", str(out)]
    assert run(command) == 5
    assert not (out / "summary.json").exists()
    assert load_checkpoint(out / "last.pt").training["epoch"] == 2
    monkeypatch.undo()
    assert run(["train", "--resume", str(out), "--quiet"]) == 0
    assert json.loads((out / "summary.json").read_text())["epochs"] == 3


def test_training_whose_result_nobody_reads_says_so_once_its_files_are_written(
    tiny_recipe, tmp_path, replace_streams
):
    out = tmp_path / "run"
    replace_streams(stdout=ReaderLeaves(""))
    for command in (["-r", str(tiny_recipe), "--out", str(out)], ["--resume", str(out)]):
        assert run(["train", *command]) == 5
        last = text_of(sys.stderr).splitlines()[-1]
        assert last.startswith("mnet: error: stdout: cannot be written (Broken pipe). Send it to ")
        assert (out / "summary.json").exists()
        replace_streams(stdout=ReaderLeaves(""))


@pytest.mark.parametrize(("gate", "code"), [([], 0), (["--min-top1", "1"], 6)])
@pytest.mark.parametrize("shared", [True, False])
def test_a_gate_decides_though_the_reader_of_the_scores_has_left(
    gate, code, shared, finished, replace_streams
):
    stdout = ReaderLeaves("top-1")
    replace_streams(stdout, stdout if shared else None)
    assert run(["eval", "--checkpoint", str(finished), *gate]) == code
    if not shared:
        assert ("--min-top1" in text_of(sys.stderr)) == (code == 6)


@pytest.mark.parametrize(("shared", "code"), [(True, 6), (False, 5)])
def test_news_that_nobody_reads_is_dropped_only_where_the_result_has_no_reader_either(
    shared, code, finished, photos, tmp_path, replace_streams
):
    data = tmp_path / "data"
    data.mkdir()
    (data / "notes.txt").write_text("not an image")  # of which there is a note
    for name in ("blue", "green"):
        (data / name).symlink_to(photos / "val" / name)
    stderr = ReaderLeaves("")
    replace_streams(stderr if shared else None, stderr)
    command = ["eval", "--checkpoint", str(finished), "--data", str(data), "--min-top1", "1"]
    assert run(command) == code


@pytest.mark.parametrize("command", [*LIGHT, ["info", "mobilenet_v1"]])
def test_a_reader_that_leaves_is_no_error(command, replace_streams):
    replace_streams(stdout=ReaderLeaves(""))
    assert run(command) == 0
    assert text_of(sys.stderr) == ""


def test_prediction_ends_when_its_reader_leaves(finished, photos, replace_streams, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{photos / 'val/red/0.jpg'}\n" * 2000))
    replace_streams(stdout=ReaderLeaves("0.jpg"))
    assert run(["predict", "--checkpoint", str(finished), "-"]) == 0
    assert text_of(sys.stderr) == ""
    assert sys.stdin.readline()


@needs_full
@pytest.mark.parametrize("command", LIGHT)
def test_a_full_stdout_is_named_with_what_to_do(command, replace_streams):
    with FULL.open("w") as full:
        replace_streams(stdout=full)
        assert run(command) == 5
    assert text_of(sys.stderr).splitlines()[-1].startswith(NO_SPACE)


@needs_full
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_what_is_left_in_a_buffer_does_not_change_the_exit_code(stream):
    command = {"stdout": ["--version"], "stderr": ["trian"]}[stream]
    with FULL.open("w") as full:
        done = subprocess.run([sys.executable, "-c", PROGRAM, *command], **{stream: full})
    assert done.returncode == {"stdout": 5, "stderr": 2}[stream]


@posix_shell
@pytest.mark.parametrize(
    ("closed", "command", "code", "said"),
    [
        ("<&-", "recipes list", 0, ""),
        ("<&-", "predict -", 5, "mnet: error: -: stdin is closed. Pipe a list of paths in"),
        (">&-", "recipes list", 5, "mnet: error: stdout: closed. Send it to "),
    ],
)
def test_streams_that_are_closed_from_the_start(closed, command, code, said):
    line = f'"$0" -c "{PROGRAM}" {command} {closed}'
    done = subprocess.run(["sh", "-c", line, sys.executable], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == (code != 0)
