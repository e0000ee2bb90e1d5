"""A run's parameters, metrics, files and model on an MLflow server.

The server and the experiment are those that MLflow itself finds, by MLFLOW_TRACKING_URI and
MLFLOW_EXPERIMENT_NAME. The module is also the loader of the model that is logged, so
`mlflow.pyfunc.load_model` needs mnet installed.
"""

import csv
import io
import json
import logging
import os
import re
import shlex
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from importlib import import_module
from pathlib import Path
from typing import Any

from mnet_cli import __version__
from mnet_cli.errors import MachineError
from mnet_cli.recipe import Recipe, plain_values
from mnet_cli.system.atomic import write_json
from mnet_cli.system.urls import without_credentials
from mnet_cli.training.events import COLUMNS, EpochEnded, Event, Row, RunEnded, RunStarted

RECORD = "tracker.json"  # in the run directory: the MLflow run, and whether all is logged
FILES = ("report.html", "best.pt", "class_indices.json", "summary.json")
METRICS = tuple(column.name for column in COLUMNS if column.name != "epoch")
EPOCHS_A_CALL = 100  # 700 metrics; a server takes up to 1,000
LONGEST_PARAMETER = 6000  # characters that a server takes
SHOWN = 200  # characters of a server's error
GOES_ON = "Training goes on; what is missing is logged at its end"
CREDENTIALS = re.compile(r"(?<=://)[^/@\s]*@")
DEFAULTS = {  # where the user has set nothing: a server that is down must not hold training up
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout is for results
}


def require_mlflow() -> Any:
    """Return the module `mlflow`.

    Raises:
        MachineError: The package is missing.
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    try:
        mlflow = import_module("mlflow")
        import_module("mlflow.pyfunc")
    except ImportError as error:
        raise MachineError(
            "mlflow",
            f"cannot be imported ({error})",
            next_step='Run: pip install "mnet-cli[mlflow]"',
        ) from error
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    return mlflow


def check_server() -> None:
    """Check that the tracking server answers.

    Raises:
        MachineError: It does not, or the package is missing.
    """
    mlflow = require_mlflow()
    try:
        mlflow.MlflowClient().search_experiments(max_results=1)
    except Exception as error:  # of the client, of requests, of a database
        raise _no_answer(mlflow, error) from error


class MlflowTracker:
    """Logs a run on an MLflow server.

    Each epoch is logged once, also by a run that is resumed: the id of the MLflow run is kept in
    the run directory, and the server is asked which epochs it has. Where the server fails after
    the start, training goes on; what is missing is logged at the end or when the run is resumed.

    Args:
        recipe: The run's own.
        run: The run directory.
        warn: Told once that the server fails.
    """

    def __init__(self, recipe: Recipe, run: Path, warn: Callable[[str], None]) -> None:
        self.recipe, self.run, self.warn = recipe, run, warn
        self.mlflow: Any = None
        self.client: Any = None
        self.run_id = ""
        self.rows: Sequence[Row] = ()
        self._logged = set[int]()  # epochs
        self._is_behind = False  # the server has failed: no more calls before the end

    def __call__(self, event: Event) -> None:
        """Start with the run, and log each epoch that has ended.

        Raises:
            MachineError: The server fails at the start, or does not know the run.
        """
        match event:
            case RunStarted():
                self.rows = event.state.rows
                self._start()
                self._try(self._log_rows, GOES_ON)
            case EpochEnded():
                # Signals wait until this event is over. The next one logs the epoch, so that a
                # slow server does not keep a signal waiting.
                self.rows = event.state.rows
            case RunEnded():
                pass  # `finish` logs the rest
            case _:
                self._try(self._log_rows, GOES_ON)

    def finish(self) -> None:
        """Log the epochs that are missing, the files and the model, and end the MLflow run."""
        if self._record().get("is_complete"):
            return
        self._is_behind = False
        again = f"mnet train --resume {shlex.quote(str(self.run))}"
        self._try(self._log_all, f'To log what is missing, run "{again}"')

    def _try(self, log: Callable[[], None], advice: str) -> None:
        """Call `log`; if it fails, say so with the advice, and log nothing until the end."""
        if self._is_behind:
            return
        try:
            log()
        except Exception as error:  # training is worth more than any of them
            self._is_behind = True
            self.warn(f"mlflow: {_readable(error)}. {advice}.")

    def _start(self) -> None:
        """Find the MLflow run, or make one."""
        self.mlflow = require_mlflow()
        try:
            self.client = self.mlflow.MlflowClient()
            self.run_id = self._record().get("run_id", "")
            if self.run_id:
                history = self.client.get_metric_history(self.run_id, METRICS[0])
                self._logged = {metric.step for metric in history}
                self.client.update_run(self.run_id, status="RUNNING")
            else:
                self.run_id = self._make_run()
        except self.mlflow.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise _no_answer(self.mlflow, error) from error
            raise MachineError(
                str(self.run / RECORD),
                f"MLflow run {self.run_id} is not on {_address(self.mlflow)}",
                next_step="Set MLFLOW_TRACKING_URI to the server that has it, or delete the file "
                "to log to a new MLflow run",
            ) from error

    def _make_run(self) -> str:
        """Make an MLflow run with the parameters, and record its id in the run directory."""
        number = os.environ.get("MLFLOW_EXPERIMENT_ID")
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
        experiment = self.mlflow.set_experiment(
            **({"experiment_id": number} if number else {"experiment_name": name})
        )
        entities = self.mlflow.entities
        parameters = {
            f"{section}.{key}": _as_parameter(value)
            for section, keys in plain_values(self.recipe).items()
            if isinstance(keys, Mapping)
            for key, value in keys.items()
        }
        tags = {"mnet.version": __version__, "mnet.data_root": self.recipe.data.root}
        made = self.client.create_run(
            experiment.experiment_id, run_name=self.run.name, tags=tags
        ).info.run_id
        self.client.log_batch(made, params=[entities.Param(*one) for one in parameters.items()])
        write_json(self.run / RECORD, {"run_id": made, "is_complete": False})
        return str(made)

    def _log_rows(self) -> None:
        """Log the epochs that the server does not have."""
        missing = [row for row in self.rows if int(row["epoch"]) not in self._logged]
        metric, now = self.mlflow.entities.Metric, int(1000 * time.time())
        for first in range(0, len(missing), EPOCHS_A_CALL):
            rows = missing[first : first + EPOCHS_A_CALL]
            self.client.log_batch(
                self.run_id,
                metrics=[
                    metric(n, row[n], now, int(row["epoch"])) for row in rows for n in METRICS
                ],
            )
            self._logged.update(int(row["epoch"]) for row in rows)

    def _log_all(self) -> None:
        """Log what is missing of a run directory that is complete."""
        self._start()  # again: a call that seemed to fail may have reached the server
        with (self.run / "metrics.csv").open(encoding="utf-8", newline="") as file:
            self.rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
        self._log_rows()
        for name in FILES:
            if (self.run / name).is_file():  # the Python API writes no report
                self.client.log_artifact(self.run_id, str(self.run / name))
        if not self.client.search_model_versions(f"run_id='{self.run_id}'"):
            self._log_model()
        self.client.set_terminated(self.run_id)
        write_json(self.run / RECORD, {"run_id": self.run_id, "is_complete": True})

    def _log_model(self) -> None:
        """Log `best.pt` as a pyfunc model, and register it under the recipe's name."""
        name = self.recipe.output.name or self.recipe.model.arch
        with (
            warnings.catch_warnings(action="ignore"),  # about a signature: images have none
            redirect_stderr(io.StringIO()),  # MLflow prints what it has registered
            self.mlflow.start_run(run_id=self.run_id, nested=True),
        ):
            self.mlflow.pyfunc.log_model(
                name="model",
                loader_module=__name__,
                data_path=str(self.run / "best.pt"),
                pip_requirements=[f"mnet-cli[mlflow]=={__version__}"],
                registered_model_name=name.replace(":", "-"),  # a registry takes no colon
                await_registration_for=0,
            )

    def _record(self) -> dict[str, Any]:
        """What `tracker.json` says; nothing where there is none."""
        path = self.run / RECORD
        if not path.is_file():
            return {}
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            record = error
        if isinstance(record, dict) and isinstance(record.get("run_id"), str):
            return record
        raise MachineError(
            str(path),
            "does not name an MLflow run",
            next_step="Delete it to log to a new MLflow run",
        )


class ImageModel:
    """The classifier as MLflow's pyfunc model.

    Args:
        path: The checkpoint.
    """

    def __init__(self, path: str) -> None:
        import mnet_cli

        self.classifier = mnet_cli.load(path)

    def predict(self, images: Any, params: Mapping[str, Any] | None = None) -> Any:
        """Predict the class of each image.

        Args:
            images: Paths or the bytes of image files: one, a list, or the first column of a
                DataFrame.
            params: Not used; MLflow passes it.

        Returns:
            A DataFrame with the columns `class`, `prob` and `probs`, as `mnet predict --json`
            names them; a row an image.

        Raises:
            DataError: An image cannot be read.
        """
        import pandas as pd

        if isinstance(images, str | bytes | os.PathLike):
            images = [images]
        elif isinstance(images, pd.DataFrame):
            images = images.iloc[:, 0]
        predictions = self.classifier.predict(list[Any](images))
        return pd.DataFrame(
            {
                "class": [one.class_name for one in predictions],
                "prob": [one.probability for one in predictions],
                "probs": [one.probabilities for one in predictions],
            }
        )


def _load_pyfunc(path: str) -> ImageModel:
    """Load the logged model; MLflow calls it by this name."""
    return ImageModel(path)


def _as_parameter(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:LONGEST_PARAMETER]


def _address(mlflow: Any) -> str:
    return without_credentials(mlflow.get_tracking_uri())


def _readable(error: Exception) -> str:
    """An error of a server on one line, without credentials."""
    text = " ".join(CREDENTIALS.sub("", str(error)).split()) or type(error).__name__
    return text[:SHOWN].rstrip(".") + ("…" if len(text) > SHOWN else "")


def _no_answer(mlflow: Any, error: Exception) -> MachineError:
    return MachineError(
        "mlflow",
        f"{_address(mlflow)} cannot be used ({_readable(error)})",
        next_step="Start the server, set MLFLOW_TRACKING_URI to the address of one, or take mlflow "
        "out of output.trackers",
    )
