"""The command line as a user meets it: what it prints where, and its exit codes."""

import csv
import io
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mnet_cli.cli import run
from mnet_cli.features.cache import open_folder
from mnet_cli.features.store import record_type, write_shard

MNET = Path(sys.executable).with_name("mnet")
LAST_LINE = r"^mnet: error: .+: .+"


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    """A working folder with a finished run; use it with `monkeypatch.chdir`."""
    folder = tmp_path_factory.mktemp("work")
    recipe = folder / "tiny.yaml"
    recipe.write_text(
        "schema: 1\n"
        "model: {arch: mobilenet_v2, width_mult: 0.35, weights: starter, freeze: features}\n"
        f"data: {{root: {photos}, image_size: 64, batch_size: 5, workers: 0}}\n"
        "train: {epochs: 8, lr: 5e-2}\n"
    )
    command = [MNET, "train", "--recipe", "tiny", "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout)
    (folder / "stderr").write_text(done.stderr)
    return folder


@pytest.fixture
def work(trained, monkeypatch):
    monkeypatch.chdir(trained)
    return trained


def error_line(capsys) -> str:
    return capsys.readouterr().err.splitlines()[-1]


def test_train_prints_json_alone_on_stdout_and_epochs_on_stderr(work):
    summary = json.loads((work / "stdout").read_text())
    assert summary["best"]["top1"] > 0.9
    errors = (work / "stderr").read_text()
    assert "8/8" in errors
    assert "\x1b" not in errors
    assert sorted(path.name for path in (work / "runs" / "latest").iterdir()) == [
        ".lock", ".owner", "best.pt", "class_indices.json", "data.json", "last.pt", "metrics.csv",
        "recipe.yaml", "report.html", "split.csv", "summary.json",
    ]  # fmt: skip


def test_eval_scores_the_latest_run(work, capsys):
    assert run(["eval", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    summary = json.loads((work / "runs" / "tiny" / "summary.json").read_text())
    assert document["top1"] == summary["best"]["top1"]
    assert document["loss"] == pytest.approx(summary["best"]["loss"], abs=1e-5)
    assert document["images"] == 12
    assert document["classes"]["red"]["support"] == 4


def test_eval_shows_tables_for_people(work, capsys):
    assert run(["eval", "--split", "train"]) == 0
    output = capsys.readouterr().out
    assert "top-1" in output
    assert "true \\ predicted" in output


def test_eval_on_other_data_matches_classes_by_name(work, capsys, photos, tmp_path):
    for name in ("red", "blue"):
        (tmp_path / name).symlink_to(photos / "val" / name)
    assert run(["eval", "--data", str(tmp_path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [document["classes"][name]["support"] for name in ("blue", "green", "red")] == [4, 0, 4]
    assert document["top1"] > 0.8


def test_eval_gate_refuses_a_low_score_but_prints_it(work, capsys):
    assert run(["eval", "--min-top1", "1.0", "--split", "val", "--json"]) in (0, 6)
    capsys.readouterr()
    assert run(["eval", "--checkpoint", "runs/tiny", "--min-top1", "0.0"]) == 0
    summary = json.loads((work / "runs" / "tiny" / "summary.json").read_text())
    capsys.readouterr()
    if summary["best"]["top1"] < 1:
        assert run(["eval", "--min-top1", "1"]) == 6
        assert "--min-top1" in error_line(capsys)


def test_eval_keeps_the_runs_own_split_when_images_have_been_added(work, capsys, photos, tmp_path):
    shutil.copytree(photos / "train", tmp_path / "flat")
    overrides = [f"data.root={tmp_path / 'flat'}", "data.val_fraction=0.25", "train.epochs=1"]
    options = [part for override in overrides for part in ("--set", override)]
    assert run(["train", "--recipe", "tiny", "--out", str(tmp_path / "run"), *options]) == 0
    for number in range(4):
        for name in ("blue", "green", "red"):
            added = tmp_path / "flat" / name / f"new{number}.jpg"
            shutil.copy(photos / "val" / name / f"{number}.jpg", added)
    capsys.readouterr()
    assert run(["eval", "--checkpoint", str(tmp_path / "run"), "--json"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out)["images"] == 6
    assert "12 images are not in" in output.err


def test_a_class_without_validation_images_is_named_before_training_and_in_the_results(
    draw_photos, tiny_recipe, tmp_path, capsys
):
    root = draw_photos(tmp_path / "photos", train=3, val=2)
    shutil.rmtree(root / "val" / "green")
    out = tmp_path / "run"
    settings = [f"data.root={root}", "train.epochs=1", "model.arch=mobilenet_v1"]
    options = [part for setting in settings for part in ("--set", setting)]
    assert run(["train", "-r", str(tiny_recipe), "--out", str(out), *options]) == 0
    output = capsys.readouterr()
    note = "note: no validation images of 'green': left out of macro-F1"
    assert output.err.index(note) < output.err.index("train loss")
    assert "over 2 of 3 classes" in output.out
    summary = json.loads((out / "summary.json").read_text())
    assert summary["classes_without_images"] == ["green"]
    assert "No validation images of &#39;green&#39;" in (out / "report.html").read_text()


def test_predict_prints_the_classic_line_for_every_class(work, capsys, photos):
    assert run(["predict", str(photos / "val" / "red" / "0.jpg")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("class: red        prob: ")


def test_predict_many_prints_a_line_an_image(work, capsys, photos):
    assert run(["predict", str(photos / "val" / "red"), str(photos / "val/blue/*.jpg")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 8


def test_predict_goes_on_after_a_bad_file_and_exits_with_3(work, capsys, photos, tmp_path):
    (tmp_path / "bad\n\x1b[31m.jpg").write_text("no image")
    good = photos / "val" / "red" / "0.jpg"
    arguments = ["predict", str(tmp_path), str(good), "--json", "--topk", "1"]
    assert run(arguments) == 3
    output = capsys.readouterr()
    bad, fine = (json.loads(line) for line in output.out.splitlines())
    assert "not an image" in bad["error"]
    assert bad["path"].endswith("bad\n\x1b[31m.jpg")
    assert (fine["class"], len(fine["probs"])) == ("red", 1)
    assert "\x1b" not in output.err
    assert run(["predict", str(tmp_path), str(good)]) == 3
    assert "bad\\n\\x1b[31m.jpg  error:" in capsys.readouterr().out


def test_predict_csv_has_a_column_a_class(work, capsys, photos):
    assert run(["predict", str(photos / "val" / "blue"), "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 4
    total = sum(float(rows[0][name]) for name in ("blue", "green", "red"))
    assert total == pytest.approx(1, abs=3e-6)  # three numbers of six digits


def test_predict_csv_is_one_line_an_image_whatever_its_name(work, capsys, photos, tmp_path):
    shutil.copy(photos / "val" / "red" / "0.jpg", tmp_path / "good\n\x1b[31m.jpg")
    (tmp_path / "worse\r\x1b[0m.jpg").write_text("no image")
    assert run(["predict", str(tmp_path), "--csv"]) == 3
    output = capsys.readouterr().out
    assert "\x1b" not in output
    _, good, worse = output.splitlines()
    assert good.startswith(f"{tmp_path}/good\\n\\x1b[31m.jpg,red,")
    assert worse.startswith(f'{tmp_path}/worse\\r\\x1b[0m.jpg,,,,,,"not an image')


def test_predict_many_shows_the_best_classes_that_are_asked_for(work, capsys, photos, tmp_path):
    folder = photos / "val" / "red"
    assert run(["predict", str(folder), "--topk", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    for number, line in enumerate(lines):
        assert re.fullmatch(
            rf"{folder}/{number}\.jpg  class: red        prob: [01]\.\d{{3}}"
            r"  class: (blue |green)      prob: 0\.\d{3}",
            line,
        )
    Image.new("RGB", (40, 40), "grey").save(tmp_path / "grey.png")
    unsure = [str(tmp_path / "grey.png"), str(folder / "0.jpg"), "--reject", "1"]
    assert run(["predict", *unsure, "--topk", "1"]) == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert re.search(r"png  class: unknown    \(below 1\)  class: \w+ +prob: 0\.\d{3}$", line)


@pytest.mark.parametrize("form", ["--json", "--csv", "--quiet"])
def test_predict_gives_a_record_for_an_entry_that_has_no_image(
    work, capsys, photos, tmp_path, monkeypatch, form
):
    good, empty, dead = str(photos / "val/red/0.jpg"), tmp_path / "empty", f"{tmp_path}/x*.jpg"
    empty.mkdir()
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{good}\r\n{dead}\r\n{good}\r\n"))
    assert run(["predict", good, str(empty), "-", form]) == 3
    output = capsys.readouterr()
    lines = output.out.splitlines()[form == "--csv" :]
    entries = [good, str(empty), good, dead, good]
    errors = ["", "no images in this folder", "", "no file matches", ""]
    if form == "--json":
        records = [json.loads(line) for line in lines]
        assert [record["path"] for record in records] == entries
        assert [record.get("error", "") for record in records] == errors
    else:
        for line, entry, error in zip(lines, entries, errors, strict=True):
            assert line.startswith(entry)
            assert line.endswith(error)
            assert ("red" in line.removeprefix(entry)) == (error == "")
    assert output.err.splitlines()[-1].startswith("mnet: error: predict: no prediction for 2 paths")


def test_predict_refuses_a_pattern_without_a_match_before_it_prints(work, capsys, photos):
    good = str(photos / "val" / "red" / "0.jpg")
    assert run(["predict", good, good, good, "*.nothing"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert "*.nothing: no file matches" in output.err


def test_predict_rejects_what_it_does_not_know(work, capsys, tmp_path):
    Image.new("RGB", (40, 40), "grey").save(tmp_path / "grey.png")
    arguments = ["predict", str(tmp_path / "grey.png"), "--json", "--reject"]
    assert run([*arguments, "0"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["class"] in ("blue", "green", "red")
    assert run([*arguments, str(min(1, record["prob"] + 1e-6))]) == 0
    assert json.loads(capsys.readouterr().out)["class"] == "unknown"


def test_predict_reads_paths_from_stdin(work, capsys, photos, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{photos / 'val' / 'red' / '1.jpg'}\n"))
    assert run(["predict", "-"]) == 0
    assert "class: red" in capsys.readouterr().out


def test_predict_draws_the_picture(work, capsys, photos, tmp_path):
    image = str(photos / "val" / "red" / "0.jpg")
    assert run(["predict", image, "--plot", str(tmp_path / "out.png")]) == 0
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    folder = str(photos / "val" / "red")
    assert run(["predict", folder, "--plot", str(tmp_path / "two.png")]) == 2
    assert not (tmp_path / "two.png").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["trian"], 2, "train"),
        (["train"], 2, "mnet train --data DIR"),
        (["train", "tiny", "--recipe", "tiny"], 2, "--recipe tiny: given with tiny"),
        (["train", "tiny", "--data", "a", "--set", "data.root=b"], 2, "--set data.root"),
        (["train", "--data", "nowhere"], 3, "nowhere"),
        (["train", "v2_flowers", "--data", "nowhere"], 3, "nowhere"),
        (["train", "--recipe", "v2_flower"], 2, "v2_flowers"),
        (["train", "--recipe", "v2_flowers", "--set", "train.epochz=3"], 2, "epochs"),
        (["train", "--recipe", "v2_flowers", "--set", "data.root=nowhere"], 3, "nowhere"),
        (["train", "--recipe", "tiny", "--set", "model.weights=nowhere.pth"], 4, "nowhere.pth"),
        (["train", "--recipe", "tiny", "--device", "tpu"], 2, "--device tpu"),
        (["train", "--recipe", "tiny", "--out", "runs/tiny"], 2, "not empty"),
        (["eval", "--checkpoint", "nowhere"], 4, "nowhere"),
        (["eval", "--split", "test"], 3, "train, val"),
        (["eval", "--split", "vall"], 2, "--split"),
        (["predict", "x.jpg", "--csv", "--topk", "1"], 2, "--topk"),
        (["predict", "x.jpg", "--plot", "tiny.yaml"], 2, "not a PNG file"),
        (["predict", "x.jpg", "--plot", "gone/x.png"], 2, "folder gone does not exist"),
        (["data", "split", "x", "y", "--val", "0"], 2, "--val"),
        (["info", "mobilenet_v9", "--weights"], 2, "mobilenet_v"),
        (["train", "--recipe", "tiny", "--out", "tiny.yaml"], 2, "--out"),
        (["eval", "--min-top1", "2"], 2, "min-top1"),
        (["predict"], 2, "paths"),
        (["predict", "*.nothing"], 2, "no file matches"),
        (["predict", "x.jpg", "--csv", "--json"], 2, "--csv"),
        (["info", "mobilenet_v4"], 2, "mobilenet_v"),
        (["info"], 2, "--weights"),
        (["info", "mobilenet_v2", "--reduced-tail"], 2, "reduced_tail"),
        (["data", "fetch", "cats"], 2, "flowers"),
        (["data", "split", "nowhere", "out"], 3, "nowhere"),
        (["recipes", "show", "nothing"], 2, "nothing"),
    ],
)
def test_bad_command_lines_get_one_line_and_their_code(work, capsys, arguments, code, says):
    before = sorted(path.name for path in (work / "runs").iterdir())
    assert run(arguments) == code
    output = capsys.readouterr()
    assert output.out == ""
    assert "Traceback" not in output.err
    assert output.err.splitlines()[-1].startswith("mnet: error: ")
    assert says in output.err.splitlines()[-1]
    assert sorted(path.name for path in (work / "runs").iterdir()) == before


def test_traceback_is_shown_on_request(work, capsys):
    assert run(["eval", "--checkpoint", "nowhere", "--traceback"]) == 4
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.splitlines()[-1].startswith("mnet: error: ")


def test_a_bug_is_called_a_bug(work, capsys, monkeypatch):
    monkeypatch.setattr("mnet_cli.recipe.shipped_recipes", lambda: 1 / 0)
    assert run(["recipes", "list"]) == 1
    assert "internal: ZeroDivisionError" in error_line(capsys)


def test_info_counts_and_lists_weights(capsys):
    assert run(["info", "mobilenet_v1", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["macs"] == 568_740_352
    assert run(["info", "--weights"]) == 0
    assert "mobilenet_v2-7ebf99e0.pth" in capsys.readouterr().out


def test_recipes_are_listed_shown_and_described(capsys):
    assert run(["recipes", "list", "--json"]) == 0
    names = json.loads(capsys.readouterr().out)
    assert "v2_flowers_classic" in names
    assert run(["recipes", "show", "v2_flowers", "--set", "train.epochs=3"]) == 0
    assert "epochs: 3" in capsys.readouterr().out
    assert run(["recipes", "schema"]) == 0
    assert "train" in json.loads(capsys.readouterr().out)["properties"]


def test_every_command_explains_itself_and_the_common_options(capsys):
    for command in ("train", "eval", "predict", "info", "data sample", "data fetch", "data split",
                    "recipes list", "recipes show", "recipes schema"):  # fmt: skip
        assert run([*command.split(), "--help"]) == 0
        output = capsys.readouterr().out
        assert all(option in output for option in ("--json", "--quiet", "--traceback")), command


def test_help_and_usage_errors_import_no_torch():
    program = (
        "import sys; from mnet_cli.cli import run; "
        "codes = [run(a.split()) for a in ('--help', 'train', 'recipes list', 'trian')]; "
        "assert codes == [0, 2, 0, 2], codes; "
        "assert not {'torch', 'torchvision', 'numpy'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_closed_pipe_is_no_error():
    with subprocess.Popen(
        [MNET, "recipes", "schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 0


def test_a_full_stdout_is_the_machines_fault():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [MNET, "recipes", "schema"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 5
    assert done.stderr.startswith("mnet: error: ")


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_signals_end_training_with_their_codes_and_say_how_to_go_on(work, name, code, tmp_path):
    command = [MNET, "train", "--recipe", "tiny", "--set", "train.epochs=5000"]
    with subprocess.Popen(
        [*command, "--out", tmp_path / "run"], stderr=subprocess.PIPE, text=True
    ) as process:
        for line in process.stderr:
            if "/5000" in line:
                break
        process.send_signal(getattr(signal, name))
        rest = process.stderr.read()
        assert process.wait(30) == code
    assert "Traceback" not in rest
    run_folder = tmp_path / "run"
    assert rest.splitlines()[-1] == (
        f"mnet: error: {name}: stopped. The state is in {run_folder / 'last.pt'}. "
        f'Run "mnet train --resume {run_folder}".'
    )
    assert run(["eval", "--checkpoint", str(run_folder), "--quiet"]) == 0


def test_a_run_without_a_checkpoint_says_how_to_go_on(work, tmp_path, capsys):
    (tmp_path / "begun").mkdir()
    assert run(["eval", "--checkpoint", str(tmp_path / "begun")]) == 4
    said = capsys.readouterr().err.splitlines()[-1]
    assert "its first epoch is not finished" in said
    assert f"mnet train --resume {tmp_path / 'begun'}" in said


def test_cache_is_listed_and_cleared(capsys):
    assert run(["cache", "info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stores"] == []
    folder = open_folder({"network": {"title": "v2 features"}, "row_bytes": 40})
    write_shard(folder, np.zeros(3, record_type((10,), "float32")))
    assert run(["cache", "info"]) == 0
    shown = capsys.readouterr().out
    assert "v2 features" in shown
    assert str(folder.parent) in shown
    assert run(["cache", "clear", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["freed_bytes"] > 120
    assert not folder.exists()


def test_what_needs_no_network_imports_no_torch():
    cases = [
        (["--help"], 0),
        (["--version"], 0),
        (["train", "--help"], 0),
        (["train"], 2),
        (["trian"], 2),
        (["train", "--recipe", "nowhere.yaml"], 2),
        (["train", "--recipe", "v2_flowers", "--set", "train.epochz=3"], 2),
        (["predict"], 2),
        (["predict", "a.jpg", "--csv", "--json"], 2),
        (["predict", "nothing*.jpg"], 2),
        (["recipes", "list"], 0),
        (["cache", "info"], 0),
    ]
    # One process for all: a module that one of them imports stays, so its name is told.
    script = (
        "import json, sys; from mnet_cli.cli import run\n"
        "for arguments, expected in json.loads(sys.argv[1]):\n"
        "    code = run(arguments)\n"
        "    assert code == expected, (arguments, code)\n"
        "    heavy = {'torch', 'torchvision', 'onnxruntime'} & set(sys.modules)\n"
        "    assert not heavy, (arguments, heavy)"
    )
    done = subprocess.run([sys.executable, "-c", script, json.dumps(cases)], capture_output=True)
    assert done.returncode == 0, done.stderr


def test_prediction_needs_no_torch_until_a_checkpoint_is_opened():
    script = (
        "import sys; import mnet_cli.inference.predict, mnet_cli.inference.evaluate; "
        "import mnet_cli.inference.classifier, mnet_cli.data.dataset; "
        "assert not {'torch', 'torchvision'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True)
    assert done.returncode == 0, done.stderr
