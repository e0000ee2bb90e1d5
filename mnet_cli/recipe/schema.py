"""The recipe's sections and keys: types, ranges, defaults and what each key means.

One key rules over another in places (phases over epochs, say); `rules` lists those.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)
from pydantic.json_schema import GenerateJsonSchema

from mnet_cli.system.plugins import ARCHITECTURES

SCHEMA_VERSION = 1


def _registered(name: str) -> str:
    if name not in ARCHITECTURES.names():
        raise ValueError("no such architecture")
    return name


Arch = Annotated[
    str,
    AfterValidator(_registered),
    Field(json_schema_extra={"enum": [*ARCHITECTURES.names()]}),
]
Augment = Literal["none", "flip", "crop_flip", "randaugment", "trivialaugment"]
Text = Annotated[str, StringConstraints(min_length=1, max_length=4096), Field(title="text")]
FolderPath = Annotated[Text, Field(title="the path of a folder")]
WeightsName = Annotated[
    Text, Field(title="imagenet, imagenet-v1, starter, none or the path of a file or folder")
]
Epochs = Annotated[int, Field(ge=1, le=10_000)]
LearningRate = Annotated[float, Field(gt=0, le=100)]
FirstModules = Annotated[
    str, Field(title="features[:N]", pattern=r"^features\[:[1-9][0-9]{0,2}\]$")
]
NamePatterns = Annotated[
    tuple[Text, ...], Field(title="a list of name patterns", min_length=1, strict=False)
]
Freeze = Literal["none", "features", "all_but_last"] | FirstModules | NamePatterns


class Section(BaseModel):
    """A group of keys: unchangeable, without unknown keys, without silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Model(Section):
    """Which network, where its weights come from and what stays frozen."""

    arch: Arch = Field(description="Name of the architecture.")
    width_mult: float = Field(
        1.0, gt=0, le=4, description="Width multiplier (alpha): scales the channels of every layer."
    )
    round_nearest: int | None = Field(
        None,
        ge=1,
        le=64,
        description="Channels are rounded to a multiple of this; null: the architecture's own "
        "rule, which is 8 for MobileNetV2 and later.",
    )
    reduced_tail: bool = Field(
        False, description="Halve the channels of the last stage (MobileNetV3)."
    )
    dropout: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Dropout probability before the classifier; null: the architecture's own.",
    )
    head: Literal["linear", "multi_stage"] = Field(
        "linear",
        description="What the last linear layer sees: linear, the architecture's own features; "
        "multi_stage, the pooled outputs of the last stages as well.",
    )
    weights: WeightsName = Field(
        "imagenet",
        description="Where training starts: imagenet (the best published weights), imagenet-v1 "
        "(the older published ones), starter (small ones that ship with mnet), none (random), "
        "or the path of a weights file or run directory.",
    )
    freeze: Freeze = Field(
        "features",
        description="What does not train: none, features (all but the classifier), all_but_last "
        "(all but the last linear layer), features[:N] (its first N modules), or a list of "
        "patterns on module and parameter names.",
    )


class Data(Section):
    """Which images, and how they become batches."""

    root: Annotated[Text, Field(title="a path or URL")] = Field(
        description="The images: a folder with train/ and val/, or one folder of classes with "
        "val_fraction; a .csv or .jsonl manifest; tar shards; Parquet files; or a URL of one of "
        "these. A path is relative to the working folder."
    )
    download: Literal["flowers"] | None = Field(
        None,
        description="Data set to download if root does not exist: flowers (3,670 photographs, "
        "229 MB). It is put beside root, and split into root/train and root/val.",
    )
    val_fraction: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Share of each class set aside for validation; "
        "only for a root that is one folder of classes, where the default is 0.2.",
    )
    image_size: int = Field(
        224, ge=32, le=1024, description="Side of the square input in pixels (rho times 224)."
    )
    batch_size: int = Field(32, ge=2, le=65_536, description="Images per training step.")
    workers: Literal["auto"] | Annotated[int, Field(ge=0, le=256)] = Field(
        "auto", description="Processes that load images; auto follows the CPU cores, 0 uses none."
    )
    augment: Augment = Field(
        "crop_flip",
        description="Changes of training images: none, flip (the image and its mirror image in "
        "turn), crop_flip (random crop and flip), or crop_flip followed by randaugment or "
        "trivialaugment.",
    )
    crop_scale_min: float = Field(
        0.08, gt=0, le=1, description="Least share of the image's area that a random crop keeps."
    )
    random_erasing: float = Field(
        0.0, ge=0, le=1, description="Probability that a training image loses a random rectangle."
    )
    cached_views: Literal["auto"] | Annotated[int, Field(ge=0, le=10_000)] = Field(
        "auto",
        description="Random views of each image whose frozen activations are computed once and "
        "kept, for the epochs to take turns with; 0 computes new ones every epoch; auto takes 2 "
        "with flip, else 4 of up to 5,000 images and fewer of more; where more than the "
        "classifier learns, as many as the epochs if these are 10 or fewer, else 0; and 0 with "
        "mixup or cutmix.",
    )
    skip_bad: bool = Field(
        False, description="Leave unreadable images out and list them, instead of stopping."
    )
    background: Literal["white", "black", "grey"] = Field(
        "white", description="Colour that shows through transparent pixels."
    )
    balance: Literal["none", "class_weights", "sampler"] = Field(
        "none",
        description="Against unequal classes: class_weights in the loss, or a sampler that draws "
        "every class equally often.",
    )


class Phase(Section):
    """A stretch of training with its own frozen part and learning rate."""

    epochs: Epochs = Field(description="Epochs of this phase.")
    freeze: Freeze = Field(description="What does not train in this phase, as in model.freeze.")
    lr: LearningRate = Field(description="Peak learning rate of this phase.")


Phases = Annotated[
    tuple[Phase, ...],
    Field(title="a list of phases, each with epochs, freeze and lr", min_length=1, strict=False),
]


class Train(Section):
    """How the network is trained."""

    solver: Literal["sgd", "exact"] = Field(
        "sgd",
        description="sgd: gradient descent, step by step, with the optimizer below. exact: freeze "
        "all but the last linear layer, and solve that as a logistic regression with an L2 "
        "penalty, whose strength is chosen by cross-validation; without epochs or learning rate.",
    )
    epochs: Epochs = Field(10, description="Passes over the training images.")
    phases: Phases | None = Field(
        None,
        description="Stretches of training in order, each with its own epochs, freeze and lr; "
        "they take the place of train.epochs, model.freeze and train.lr.",
    )
    optimizer: Literal["adamw", "adam", "sgd"] = Field("adamw", description="Update rule.")
    lr: LearningRate = Field(1e-3, description="Peak learning rate.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum (sgd only; not with onecycle).")
    weight_decay: float = Field(
        0.01, ge=0, le=10, description="Weight decay (adam, sgd: as an L2 term; adamw: decoupled)."
    )
    schedule: Literal["onecycle", "cosine", "constant"] = Field(
        "onecycle",
        description="Course of the learning rate over the steps of training; onecycle moves the "
        "momentum against it.",
    )
    warmup_epochs: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="Epochs of linear rise to lr; not with onecycle, which has its own.",
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of the target spread evenly over all classes."
    )
    mixup: float = Field(0.0, ge=0, le=10, description="Mixup's alpha; 0 is off.")
    cutmix: float = Field(0.0, ge=0, le=10, description="CutMix's alpha; 0 is off.")
    ema: float = Field(
        0.0, ge=0, lt=1, description="Decay of the weights' moving average; 0 is off."
    )
    early_stop: int = Field(
        0, ge=0, le=10_000, description="Epochs without improvement before stopping; 0 is off."
    )
    clip_grad_norm: float = Field(
        0.0, ge=0, le=1e6, description="Largest norm of the gradient; 0 is off."
    )
    monitor: Literal["top1", "macro_f1", "loss"] = Field(
        "top1",
        description="Validation metric that picks the best epoch; at a tie the earlier one wins.",
    )
    save_minutes: float = Field(
        10.0,
        gt=0,
        le=10_000,
        description="Minutes between the checkpoints within an epoch that --resume goes on from.",
    )
    amp: bool = Field(False, description="Automatic mixed precision.")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="Seed of every random choice.")


RunName = Annotated[
    str,
    Field(title="a name without slashes or a leading dot", pattern=r"^[^/\\.][^/\\]{0,199}$"),
]


Trackers = Annotated[
    tuple[Literal["tensorboard", "mlflow"], ...],
    Field(title="a list of tensorboard, mlflow or both", max_length=2, strict=False),
]


class Output(Section):
    """Where the run directory goes, and what else logs the run."""

    root: FolderPath = Field("runs", description="Folder of run directories.")
    name: RunName | None = Field(
        None, description="Name of the run directory; null: the recipe file's name."
    )
    trackers: Trackers = Field(
        (),
        description="What logs the run besides the run directory: tensorboard (event files in "
        "it), mlflow (the server that MLFLOW_TRACKING_URI names).",
    )

    @model_validator(mode="before")
    @classmethod
    def _read_older_key(cls, values: Any) -> Any:
        """Take `tensorboard: true` or `false`, which recipes had before `trackers`.

        `true` beside `trackers` stays, as an unknown key: one of the two would have no effect.
        """
        if not isinstance(values, dict) or not isinstance(values.get("tensorboard"), bool):
            return values
        others = {key: value for key, value in values.items() if key != "tensorboard"}
        if not values["tensorboard"]:
            return others
        return values if "trackers" in values else {**others, "trackers": ("tensorboard",)}


class Recipe(Section):
    """A training run as a file describes it."""

    model_config = ConfigDict(title="mnet recipe", validate_by_name=True)

    schema_version: int = Field(  # a Literal[1] would let true and 1.0 pass
        alias="schema",
        ge=SCHEMA_VERSION,
        le=SCHEMA_VERSION,
        json_schema_extra={"const": SCHEMA_VERSION},
        description="Version of the recipe format.",
    )
    model: Model
    data: Data
    train: Train = Train()
    output: Output = Output()

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Training as phases; one phase when the recipe lists none."""
        if self.train.solver == "exact":
            return (Phase(epochs=1, freeze="all_but_last", lr=self.train.lr),)
        if self.train.phases:
            return self.train.phases
        return (Phase(epochs=self.train.epochs, freeze=self.model.freeze, lr=self.train.lr),)


def json_schema() -> dict[str, Any]:
    """The recipe format as JSON Schema (draft 2020-12), for editors."""
    dialect = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": dialect, **Recipe.model_json_schema(schema_generator=_OwnTitles)}


class _OwnTitles(GenerateJsonSchema):
    """Leaves out the titles that pydantic makes from names, so that a title says something."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False
