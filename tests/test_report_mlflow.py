"""Runs logged on a local MLflow server with a SQLite store, and what is said without one."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
import torch

import mnet_cli
from mnet_cli.cli import run
from mnet_cli.recipe import load_recipe
from mnet_cli.report.trackers import open_trackers
from mnet_cli.training.events import EpochEnded
from mnet_cli.training.prepare import prepare_data, prepare_job
from mnet_cli.training.trainer import Trainer

MLFLOW = ["--set", "output.trackers=[mlflow]"]
# MLflow itself uses what is deprecated elsewhere.
pytestmark = [pytest.mark.mlflow, pytest.mark.filterwarnings("default")]


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Server:
    """`mlflow server` in a process group of its own; it can be stopped and started again."""

    def __init__(self, folder):
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self):
        command = [
            sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(self.port),
            "--backend-store-uri", f"sqlite:///{self.folder / 'store.db'}",
            "--artifacts-destination", str(self.folder / "artifacts"),
        ]  # fmt: skip
        self.log = (self.folder / "log").open("ab")
        self.process = subprocess.Popen(
            command, stdout=self.log, stderr=self.log, cwd=self.folder, start_new_session=True
        )
        for _ in range(300):
            with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                return
            time.sleep(0.5)
        raise AssertionError((self.folder / "log").read_text())

    def stop(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.log.close()


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    pytest.importorskip("mlflow.server", reason="the package mlflow has the server")
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def server(running, tmp_path, monkeypatch):
    """The server, with an experiment of the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", running.uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", tmp_path.name)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)
    return running


def logged(run_directory):
    """The client, and the MLflow run that the run directory names."""
    import mlflow

    client = mlflow.MlflowClient()
    return client, client.get_run(
        json.loads((run_directory / "tracker.json").read_text())["run_id"]
    )


def steps(client, found, name="top1"):
    return sorted(m.step for m in client.get_metric_history(found.info.run_id, name))


def test_a_run_is_logged_whole_and_its_model_predicts(server, tiny_recipe, tmp_path, photos, capfd):
    import mlflow

    assert run(["train", str(tiny_recipe), "--out", "run", *MLFLOW, "--quiet", "--json"]) == 0
    output = capfd.readouterr()
    assert json.loads(output.out)["epochs"] == 2  # nothing of MLflow's on stdout
    assert output.err == ""
    client, found = logged(tmp_path / "run")
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "run"
    assert client.get_experiment(found.info.experiment_id).name == tmp_path.name
    assert found.data.params["model.arch"] == "mobilenet_v2"
    assert found.data.params["model.width_mult"] == "0.35"
    assert found.data.params["output.trackers"] == '["mlflow"]'
    assert found.data.tags["mnet.version"] == mnet_cli.__version__
    assert found.data.tags["mnet.data_root"] == str(photos)
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name in rows[0].keys() - {"epoch"}:
        history = client.get_metric_history(found.info.run_id, name)
        assert [(m.step, m.value) for m in sorted(history, key=lambda m: m.step)] == [
            (int(row["epoch"]), float(row[name])) for row in rows
        ]
    files = {file.path for file in client.list_artifacts(found.info.run_id)}
    assert files >= {"report.html", "best.pt", "class_indices.json", "summary.json"}

    [version] = client.search_model_versions("name='tiny'")
    assert version.run_id == found.info.run_id
    model = mlflow.pyfunc.load_model("models:/tiny/1")
    paths = [str(path) for path in sorted(photos.glob("val/*/0.jpg"))]
    assert run(["predict", *paths, "--checkpoint", "run", "--json", "--topk", "3"]) == 0
    local = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    for images in (paths, [Path(path).read_bytes() for path in paths]):
        answer = model.predict(images)
        assert list(answer["class"]) == [row["class"] for row in local]
        assert list(answer["prob"]) == pytest.approx([row["prob"] for row in local], abs=1e-6)
        assert list(answer["probs"]) == [pytest.approx(row["probs"], abs=1e-6) for row in local]

    assert run(["train", "--resume", "run"]) == 0
    assert len(client.search_model_versions("name='tiny'")) == 1


def test_a_resumed_run_goes_on_with_its_mlflow_run(server, tiny_recipe, tmp_path):
    recipe = load_recipe(tiny_recipe, ["train.epochs=3", "output.trackers=[mlflow]"])
    job = prepare_job(recipe, prepare_data(recipe), torch.device("cpu"), tmp_path / "run")

    def stop(event):  # as if killed when last.pt has the epoch and the server has not
        if isinstance(event, EpochEnded) and event.row["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(job, [stop, *open_trackers(recipe, job.run, pytest.fail)]).fit()
    job.lock.release()
    client, before = logged(job.run)
    assert steps(client, before) == [1]
    assert before.info.status == "RUNNING"

    assert run(["train", "--resume", str(job.run)]) == 0
    client, after = logged(job.run)
    assert after.info.run_id == before.info.run_id
    assert after.info.status == "FINISHED"
    assert steps(client, after) == steps(client, after, "val_loss") == [1, 2, 3]


def test_the_python_api_logs_too(server, tiny_recipe, tmp_path):
    options = {"output.trackers": ["mlflow"], "output.name": "by:api", "train.epochs": 1}
    result = mnet_cli.train(tiny_recipe, options, out="run")
    client, found = logged(result.run)
    assert steps(client, found) == [1]
    assert len(client.search_model_versions("name='by-api'")) == 1


def test_a_run_of_another_server_is_refused(server, tiny_recipe, tmp_path, capsys):
    recipe = load_recipe(tiny_recipe, ["output.trackers=[mlflow]"])
    prepare_job(recipe, prepare_data(recipe), torch.device("cpu"), tmp_path / "run").lock.release()
    (tmp_path / "run" / "tracker.json").write_text(json.dumps({"run_id": "0" * 32}))
    assert run(["train", "--resume", "run"]) == 5
    assert f"MLflow run {'0' * 32} is not on {server.uri}" in capsys.readouterr().err


def test_a_server_that_goes_down_costs_no_training(tiny_recipe, tmp_path, monkeypatch, capsys):
    pytest.importorskip("mlflow.server", reason="the package mlflow has the server")
    monkeypatch.chdir(tmp_path)
    server = Server(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)
    recipe = load_recipe(tiny_recipe, ["train.epochs=3", "output.trackers=[mlflow]"])
    job = prepare_job(recipe, prepare_data(recipe), torch.device("cpu"), tmp_path / "run")
    said = []

    def watch(event):
        if isinstance(event, EpochEnded) and event.row["epoch"] == 2:
            server.stop()

    server.start()
    Trainer(job, [watch, *open_trackers(recipe, job.run, said.append)]).fit()
    job.lock.release()
    [warning] = said
    assert warning.startswith("mlflow: ") and "Training goes on" in warning

    server.start()
    try:
        assert run(["train", "--resume", "run"]) == 0  # all is trained: only files are written
        client, found = logged(job.run)
        assert steps(client, found) == [1, 2, 3]
        assert found.info.status == "FINISHED"
    finally:
        server.stop()

    # And a server that fails at the very end is made up for by --resume.
    record = tmp_path / "run" / "tracker.json"
    record.write_text(record.read_text().replace("true", "false"))
    assert run(["train", "--resume", "run"]) == 0
    assert 'mnet train --resume run"' in capsys.readouterr().err
    server.start()
    try:
        assert run(["train", "--resume", "run"]) == 0
        assert json.loads(record.read_text())["is_complete"]
    finally:
        server.stop()


def test_without_a_server_nothing_starts(tiny_recipe, tmp_path, monkeypatch, capsys):
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert run(["train", str(tiny_recipe), "--out", "run", *MLFLOW]) == 5
    said = capsys.readouterr().err
    assert "mnet: error: mlflow: http://127.0.0.1:" in said.splitlines()[-1]
    assert "set MLFLOW_TRACKING_URI" in said
    assert "secret" not in said
    assert not (tmp_path / "run").exists()
