"""The Python API: load a trained classifier, or train one.

Use it as `mnet_cli.load` and `mnet_cli.train`. Nothing is printed; a tracker's
server that fails during training is a Python warning. Errors that a user can fix are
`MnetError`s (see `mnet_cli.errors`). While `train` runs in the main thread, it handles signals so
that a step is never interrupted; the handlers are as before when it returns.
"""

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from PIL import Image

from mnet_cli.data.image_files import ImageFile, ImageInput, image_of
from mnet_cli.data.images import read_image
from mnet_cli.data.preprocess import Preprocess, eval_array
from mnet_cli.errors import DataError, MnetError, UsageError
from mnet_cli.inference import classifier as inference
from mnet_cli.inference.metrics import softmax
from mnet_cli.system.machine import BATCH
from mnet_cli.training.run_directory import follow_latest
from mnet_cli.training.run_images import open_images

if TYPE_CHECKING:
    from mnet_cli.inference.evaluate import Evaluation

_ONE_IMAGE = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, np.ndarray)


@dataclass(frozen=True)
class Prediction:
    """The result for one image.

    Attributes:
        class_name: The most probable class.
        probability: Its probability, in 0..1.
        probabilities: The probability of every class by name, the most probable first.
    """

    class_name: str
    probability: float
    probabilities: dict[str, float]


class Classifier:
    """A trained classifier; `load` makes it.

    Examples:
        >>> classifier = mnet_cli.load("runs/latest")
        >>> prediction = classifier.predict("rose.jpg")
        >>> print(prediction.class_name, prediction.probability)
        >>> for prediction in classifier.predict(["a.jpg", "b.jpg"]):
        ...     print(prediction.class_name)

    Attributes:
        path: The file that it was read from.
        class_names: In the order of the model's outputs.
        preprocess: How an image becomes the model's input.
    """

    def __init__(self, opened: inference.Classifier) -> None:
        self._opened = opened
        self.path = opened.source
        self.class_names: tuple[str, ...] = opened.class_names
        self.preprocess: Preprocess = opened.preprocess

    def __repr__(self) -> str:
        return f"Classifier({str(self.path)!r}, {len(self.class_names)} classes)"

    @property
    def image_size(self) -> int:
        """Side of the model's square input in pixels."""
        return self.preprocess.image_size

    @overload
    def predict(  # type: ignore[overload-overlap]  # a str is an iterable of str
        self, images: ImageInput
    ) -> Prediction: ...

    @overload
    def predict(self, images: Iterable[ImageInput]) -> list[Prediction]: ...

    def predict(self, images: ImageInput | Iterable[ImageInput]) -> Prediction | list[Prediction]:
        """Predict the class of one image, or of several.

        Args:
            images: One image, or an iterable of images. An image is a path, the bytes of an
                image file, a PIL image, or an RGB array (H, W, 3), uint8.

        Returns:
            One prediction for one image; a list of predictions, in order, for several.

        Raises:
            DataError: An image cannot be read or decoded, or is not one of these types.
        """
        if isinstance(images, _ONE_IMAGE) or not isinstance(images, Iterable):
            return self._predict([images])[0]
        remaining, predictions = iter(images), list[Prediction]()
        while batch := list(islice(remaining, BATCH)):
            predictions += self._predict(batch)
        return predictions

    def _predict(self, images: Sequence[Any]) -> list[Prediction]:
        """Predict images with one forward pass."""
        background = self.preprocess.background
        inputs = [
            eval_array(read_image(_as_image(image), background), self.preprocess)
            for image in images
        ]
        probabilities = softmax(self._opened.classify(np.stack(inputs)))  # (N, C)
        return [self._as_prediction(row) for row in probabilities.tolist()]

    def _as_prediction(self, probabilities: list[float]) -> Prediction:
        ranked = sorted(zip(self.class_names, probabilities, strict=True), key=lambda one: -one[1])
        return Prediction(*ranked[0], dict(ranked))

    def evaluate(
        self, data: str | os.PathLike[str] | None = None, split: str | None = None
    ) -> "Evaluation":
        """Evaluate on labelled images.

        Args:
            data: A folder with one folder per class, or with train/ and val/. None means the
                images of the classifier's own run.
            split: `train`, `val` or `test`; None means `val`, or all images where the folder is
                not split.

        Returns:
            The evaluation: `top1`, `macro_f1`, `loss`, `confusion`, and more.

        Raises:
            DataError: The images cannot be used, or there is no such split.
            WeightsError: The folder has a class that the classifier does not know.
        """
        from mnet_cli.inference.evaluate import evaluate

        images = open_images(self._opened, None if data is None else os.fspath(data))
        split = split or ("all" if "all" in images.splits else "val")
        if split not in images.splits:
            raise DataError(
                str(images.root),
                f"has no split {split!r}",
                next_step=f"Choose from {', '.join(images.splits)}",
            )
        return evaluate(
            self._opened.classify,
            self._opened.preprocess,
            images.files(split),
            images.splits[split].labels,
            self.class_names,
            parallel=self._opened.parallel,
        )

    def export(
        self,
        format: str = "onnx",
        *,
        precision: str = "float32",
        bake: bool = False,
        batch: int = 0,
        out: str | os.PathLike[str] | None = None,
        data: str | os.PathLike[str] | None = None,
        force: bool = False,
    ) -> Path:
        """Write a file for another runtime, checked against PyTorch on labelled images.

        Args:
            format: Name of the file format, such as `onnx` or `tflite`.
            precision: `float32`, `float16` or `int8`.
            bake: Let the file take uint8 pixels and return probabilities.
            batch: Fix the number of images per call; 0 leaves it free.
            out: Folder of the file; None means the folder of the checkpoint.
            data: Labelled images for the check; None means those of the classifier's own run.
            force: Replace a file of the same name.

        Returns:
            The path of the new file.

        Raises:
            UsageError: The format or precision is unknown, or the file exists.
            WeightsError: The classifier was not loaded from a checkpoint.
            MachineError: An extra is not installed, or the file cannot be written.
            RefusedError: The outputs of the file differ from those of the checkpoint.
        """
        from mnet_cli.errors import RefusedError
        from mnet_cli.export import pipeline
        from mnet_cli.formats.checkpoint import load_checkpoint

        checkpoint = load_checkpoint(self.path)
        plan = pipeline.Plan(
            formats=[format],
            precision=precision,
            bake=bake,
            batch=batch,
            calibration=200,
            max_drop=0.01,
            out=self.path.parent if out is None else Path(out),
            force=force,
        )
        pipeline.check_plan(checkpoint, plan)
        images = open_images(self._opened, None if data is None else os.fspath(data))
        [result] = pipeline.export(checkpoint, self.path, images, plan)
        if result.path is None:
            raise RefusedError(f"{format} {precision}", result.refused)
        return result.path


@dataclass(frozen=True)
class TrainResult:
    """A finished training run.

    Attributes:
        run: The run directory, with `best.pt` in it.
        metrics: The metrics of the best epoch on the validation images, by name.
        summary: The content of `summary.json`.
    """

    run: Path
    metrics: dict[str, Any]
    summary: dict[str, Any] = field(repr=False)

    def load(self, device: str = "auto") -> Classifier:
        """Load the best checkpoint of the run; see `load`."""
        return load(self.run, device)


def load(path: str | os.PathLike[str] = "runs/latest", device: str = "auto") -> Classifier:
    """Load a trained classifier.

    An exported file such as `model.onnx` is run by its own runtime, without importing torch.

    Args:
        path: A run directory, a checkpoint such as `best.pt`, or an exported file.
        device: `auto`, `cpu`, `cuda` or `mps`; `auto` takes the fastest that is available.

    Raises:
        WeightsError: There is no usable checkpoint or exported file at `path`.
        MachineError: The package that runs such files is not installed.
        UsageError: The device is not available.

    Examples:
        >>> mnet_cli.load("runs/latest").predict("rose.jpg").class_name
        'roses'
    """
    return Classifier(inference.open_classifier(follow_latest(Path(path)), device))


def train(
    recipe: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    data: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    device: str = "auto",
    on_epoch: Callable[[Mapping[str, float]], None] = lambda row: None,
) -> TrainResult:
    """Train a classifier as a recipe says.

    Args:
        recipe: A recipe file, or the name of a shipped recipe. None means `v2_flowers`, and
            needs `data`.
        overrides: Values for keys of the recipe, such as `{"train.epochs": 3}`.
        data: Images to train on, in place of `data.root`.
        out: The run directory, new or empty. None means a new one in `runs`.
        device: As for `load`.
        on_epoch: Called after every epoch with its row of `metrics.csv`, by column.

    Returns:
        The run directory and the metrics of the best epoch.

    Raises:
        RecipeError: The recipe or an override is not valid.
        MnetError: Any other error; see `mnet_cli.errors`.

    Examples:
        >>> result = mnet_cli.train("v2_flowers", {"data.root": "photos", "train.epochs": 3})
        >>> print(result.metrics["top1"])
        >>> classifier = result.load()
    """
    from mnet_cli.models.device import choose_device
    from mnet_cli.recipe import as_overrides, select_recipe
    from mnet_cli.report.trackers import check_trackers, finish_trackers, open_trackers
    from mnet_cli.system.process_group import join_group
    from mnet_cli.training.data_root import download_data, with_validation
    from mnet_cli.training.events import EpochEnded, Event
    from mnet_cli.training.prepare import prepare_data, prepare_job
    from mnet_cli.training.summary import write_results
    from mnet_cli.training.trainer import Trainer

    if join_group().size > 1:
        raise UsageError(
            "train",
            "a launcher started several processes, which train together on the command line only",
            next_step='Run "torchrun -m mnet_cli train"',
        )
    if recipe is None and data is None:
        raise UsageError("train", "no recipe and no data", next_step="Give one of the two")
    resolved = select_recipe(
        None if recipe is None else os.fspath(recipe),
        as_overrides(overrides or {}),
        None if data is None else os.fspath(data),
    )
    chosen = choose_device(device)
    check_trackers(resolved)
    download_data(resolved)
    resolved = with_validation(resolved)
    images = prepare_data(resolved)
    job = prepare_job(resolved, images, chosen, None if out is None else Path(out))

    def watch(event: Event) -> None:
        if isinstance(event, EpochEnded):
            on_epoch(event.row)

    try:
        trackers = open_trackers(resolved, job.run, warnings.warn)
        summary = write_results(job, Trainer(job, [watch, *trackers]).fit())
        finish_trackers(trackers)
    finally:
        if job.lock:
            job.lock.release()
    return TrainResult(job.run, summary["best"], summary)


def _as_image(value: Any) -> ImageFile:
    """Take one image of any accepted type."""
    try:
        return image_of(value)
    except TypeError as error:
        raise DataError(
            "image",
            f"is of the type {type(value).__name__}",
            next_step="Give a path, the bytes of an image file, a PIL image or an array",
        ) from error


__all__ = ["Classifier", "ImageInput", "MnetError", "Prediction", "TrainResult", "load", "train"]
