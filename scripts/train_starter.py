"""Train the starter weights that ship with mnet: from scratch, on drawn flowers alone.

Usage: .venv/bin/python scripts/train_starter.py [WORK_FOLDER]

Draws 7,000 pictures, trains MobileNetV2 (alpha 0.35, 96 px) on them and writes the backbone
as half-precision numbers to mnet_cli/models/starter.pth. The pictures have seeds that
`mnet data sample` does not use by default, so no sample picture was seen in training.
"""

import sys
from pathlib import Path

import torch

from mnet_cli.cli import console
from mnet_cli.data.sample import draw_sample
from mnet_cli.formats.checkpoint import load_checkpoint
from mnet_cli.models.registry import find_architecture
from mnet_cli.recipe import parse_recipe
from mnet_cli.system.tensorfile import write_tensors
from mnet_cli.training.events import EpochEnded, Event
from mnet_cli.training.prepare import prepare_data, prepare_job
from mnet_cli.training.trainer import Trainer

RECIPE = """\
schema: 1
model: {arch: mobilenet_v2, width_mult: 0.35, dropout: 0.2, weights: none, freeze: none}
data: {root: FOLDER, image_size: 96, batch_size: 64, crop_scale_min: 0.3}
train: {epochs: 16, lr: 4e-3, weight_decay: 0.05, label_smoothing: 0.1}
"""
SEED = 2017  # of the drawings


def main(work: Path) -> None:
    """Draw, train, and write the backbone."""
    pictures = work / "drawn"
    with console.bar("drawing") as on_progress:
        draw_sample(
            pictures,
            train_per_class=1300,
            val_per_class=100,
            size=128,
            seed=SEED,
            on_progress=on_progress,
        )
    recipe = parse_recipe(RECIPE.replace("FOLDER", str(pictures)), "starter")
    job = prepare_job(recipe, prepare_data(recipe), torch.device("cpu"), work / "run")

    def show(event: Event) -> None:
        if isinstance(event, EpochEnded):
            console.note(f"epoch {event.row['epoch']}: top-1 {event.row['top1']:.3f}")

    Trainer(job, [show]).fit()
    trained = load_checkpoint(job.run)
    backbone = {
        name: tensor.half()
        for name, tensor in trained.state_dict.items()
        if name.startswith("features.") and tensor.is_floating_point()
    }
    starter = find_architecture(trained.arch).starter
    assert starter is not None, "RECIPE names an architecture with starter weights"
    write_tensors(
        starter.path,
        {
            "format": 1,
            "arch": trained.arch,
            "model_args": {"width_mult": trained.model_args["width_mult"]},
            "preprocess": trained.preprocess.to_dict(),
            "state_dict": backbone,
        },
    )
    console.line(f"{starter.path}: {starter.path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/starter"))
