"""The Python API: `mnet_cli.load` and `mnet_cli.train`."""

import io
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mnet_cli
from mnet_cli.errors import DataError, RecipeError, UsageError, WeightsError


@pytest.fixture(scope="module")
def result(photos, tmp_path_factory):
    """A finished run of a small network, trained through the API."""
    folder = tmp_path_factory.mktemp("api")
    recipe = folder / "small.yaml"
    recipe.write_text(
        "schema: 1\n"
        "model: {arch: mobilenet_v2, width_mult: 0.35, weights: starter, freeze: features}\n"
        "data: {root: nowhere, image_size: 64, batch_size: 5, workers: 0}\n"
        "train: {epochs: 1, lr: 5e-2}\n"
    )
    rows = []
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    done = mnet_cli.train(
        recipe,
        {"data.root": photos, "train.epochs": 4},
        out=folder / "run",
        device="cpu",
        on_epoch=rows.append,
    )
    assert {number: signal.getsignal(number) for number in handlers} == handlers
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    return done


@pytest.fixture(scope="module")
def classifier(result):
    return result.load("cpu")


def test_importing_the_package_is_light_and_lists_its_functions():
    script = (
        "import sys, mnet_cli; "
        "assert {'load', 'train', '__version__'} <= set(dir(mnet_cli)); "
        "assert not {'torch', 'numpy', 'PIL', 'pydantic'} & set(sys.modules), 'heavy'; "
        "assert callable(mnet_cli.load) and 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mnet_cli.nothing  # noqa: B018
    assert Path(mnet_cli.__file__).with_name("py.typed").is_file()


def test_training_returns_the_run_its_metrics_and_prints_nothing(result, photos, tmp_path, capfd):
    assert (result.run / "best.pt").is_file()
    assert result.metrics["top1"] > 0.8
    assert result.metrics == result.summary["best"]
    again = mnet_cli.train(
        result.run.parent / "small.yaml", data=str(photos), out=tmp_path / "run", device="cpu"
    )
    assert again.summary["epochs"] == 1
    assert capfd.readouterr() == ("", "")


def test_a_run_can_be_continued_by_another_process_after_training(result):
    resume = [sys.executable, "-m", "mnet_cli", "train", "--resume", str(result.run)]
    done = subprocess.run(resume, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "already complete" in done.stderr


def test_one_image_gives_one_prediction_in_whatever_form_it_comes(classifier, photos, capfd):
    path = photos / "val" / "red" / "0.jpg"
    image = Image.open(path)
    expected = classifier.predict(path)
    assert expected.class_name == "red"
    assert expected.probability == max(expected.probabilities.values())
    assert set(expected.probabilities) == {"blue", "green", "red"}
    assert sum(expected.probabilities.values()) == pytest.approx(1)
    for form in (str(path), path.read_bytes(), image, np.asarray(image)):
        assert classifier.predict(form) == expected
    assert capfd.readouterr() == ("", "")


def test_several_images_give_a_list_in_order(classifier, photos):
    paths = [photos / "val" / name / "1.jpg" for name in ("red", "blue", "green")] * 7
    predictions = classifier.predict(paths)
    assert [one.class_name for one in predictions] == ["red", "blue", "green"] * 7
    assert classifier.predict(iter(paths[:2])) == classifier.predict(tuple(paths[:2]))
    assert classifier.predict([]) == []


def test_a_pil_image_is_turned_and_laid_on_the_background_like_a_file(classifier):
    turned = Image.new("RGB", (60, 40), "red")
    turned.paste("blue", (0, 0, 20, 40))
    turned.putalpha(200)
    exif = turned.getexif()
    exif[274] = 6  # rotate by 90 degrees
    content = io.BytesIO()
    turned.save(content, "PNG", exif=exif)
    opened = Image.open(io.BytesIO(content.getvalue()))
    assert classifier.predict(opened) == classifier.predict(content.getvalue())


@pytest.mark.parametrize(
    ("image", "says"),
    [
        ("nowhere.jpg", "nowhere.jpg: cannot be read"),
        (b"<html>", "an HTML page"),
        (np.zeros((4, 4)), r"the array has shape \(4, 4\) and dtype float64"),
        ([3], "is of the type int"),
    ],
)
def test_what_is_no_image_is_a_data_error(classifier, image, says):
    with pytest.raises(DataError, match=says):
        classifier.predict(image)


def test_a_truncated_pil_image_is_a_data_error(classifier, photos):
    content = (photos / "val" / "red" / "0.jpg").read_bytes()
    with pytest.raises(DataError, match=r"cannot be used .*truncated"):
        classifier.predict(Image.open(io.BytesIO(content[:-100])))


def test_evaluation_takes_the_runs_images_or_a_folder(classifier, result, photos):
    own = classifier.evaluate()
    assert own.top1 == result.metrics["top1"]
    assert classifier.evaluate(photos, split="train").labels.size == 24
    assert classifier.evaluate(photos / "val").top1 == own.top1
    with pytest.raises(DataError, match="has no split 'test'"):
        classifier.evaluate(split="test")


def test_an_exported_file_predicts_the_same_and_needs_no_torch(classifier, photos, tmp_path):
    path = classifier.export("onnx", out=tmp_path)
    assert path.suffix == ".onnx"
    image = photos / "val" / "green" / "0.jpg"
    expected = classifier.predict(image)
    script = (
        "import sys, mnet_cli; "
        "prediction = mnet_cli.load(sys.argv[1]).predict(sys.argv[2]); "
        "print(prediction.class_name, prediction.probability); "
        "assert not {'torch', 'torchvision'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, path, image], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    name, probability = done.stdout.split()
    assert name == expected.class_name
    assert float(probability) == pytest.approx(expected.probability, abs=1e-4)
    with pytest.raises(UsageError, match="exists"):
        classifier.export("onnx", out=tmp_path)


def test_attributes_say_what_the_classifier_is(classifier, result):
    assert classifier.class_names == ("blue", "green", "red")
    assert classifier.image_size == 64
    assert classifier.path == result.run / "best.pt"
    assert "3 classes" in repr(classifier)


def test_errors_are_those_of_the_command_line(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError):
        mnet_cli.load("nowhere.pt")
    with pytest.raises(RecipeError, match="v2_flowers"):
        mnet_cli.train("v2_flower", data=photos)
    with pytest.raises(RecipeError, match="epochs"):
        mnet_cli.train("v2_flowers", {"train.epochz": 3}, data=photos)
    with pytest.raises(UsageError, match="no recipe and no data"):
        mnet_cli.train()
    assert list(tmp_path.iterdir()) == []


def test_train_is_not_for_the_processes_of_a_launcher(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(UsageError, match="torchrun -m mnet_cli train"):
        mnet_cli.train("v2_flowers")
