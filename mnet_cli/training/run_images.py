"""The labelled images of a trained classifier: those that are named, or those of its run."""

from collections.abc import Callable
from dataclasses import replace

from mnet_cli.data.dataset import DataSet, open_dataset, take_split
from mnet_cli.errors import DataError
from mnet_cli.inference.classifier import Classifier
from mnet_cli.recipe import load_resolved, restore_recipe
from mnet_cli.training.run_directory import find_data


def open_images(
    classifier: Classifier,
    root: str | None,
    on_progress: Callable[[int, int], None] | None = None,
) -> DataSet:
    """Open labelled images for a classifier.

    Args:
        classifier: Its class names say what the folders' names mean.
        root: The folder; None for that of its run, divided as the run divided it.
        on_progress: Called with (done, total) while images are checked.

    Raises:
        DataError: The folder is not there, or cannot be used.
        WeightsError: It has a class that the classifier lacks.
    """
    if root is not None:
        return open_dataset(root, class_names=classifier.class_names, on_progress=on_progress)
    beside = classifier.source.with_name("recipe.yaml")
    if classifier.recipe:
        recipe = restore_recipe(classifier.recipe, str(classifier.source))
    elif beside.is_file():
        recipe = load_resolved(beside)
    else:
        raise DataError(
            str(classifier.source),
            "not in a run directory that names its images",
            next_step="Name labelled images with --data DIR",
        )
    folder = find_data(classifier.source.parent, recipe.data.root, "--data DIR")
    manifest = classifier.source.with_name("split.csv")
    divided = recipe.data.val_fraction is not None and manifest.is_file()
    images = open_dataset(
        folder,
        class_names=classifier.class_names,
        val_fraction=None if divided else recipe.data.val_fraction,
        seed=recipe.train.seed,
        skip_bad=recipe.data.skip_bad,
        on_progress=on_progress,
    )
    skipped = [f"{path}: left out ({fault})" for path, fault in images.skipped]
    images = replace(images, notes=(*images.notes, *skipped))
    return take_split(images, manifest) if divided else images
