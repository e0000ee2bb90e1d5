"""Keys that contradict one another or would have no effect, as data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

from mnet_cli.models.published import (
    PUBLISHED_NAMES,
    STARTER,
    STARTER_ARCH,
    STARTER_WIDTH,
    widths_with_weights,
)
from mnet_cli.recipe.schema import Arch


@dataclass(frozen=True)
class Rule:
    """A condition on a key that a recipe gives, in the light of others.

    Args:
        keys: The key that the rule is about, then those it depends on.
        broken: Takes the keys' values in that order; true when the first cannot stand.
        found: What is wrong; `{0}`, `{1}` … stand for the values.
        expected: What was expected instead, in the same form.
        next_step: What to do next, likewise.
    """

    keys: tuple[str, ...]
    broken: Callable[..., bool]
    found: str
    expected: str = ""
    next_step: str = ""


def _beside_phases(key: str, own_key: str) -> Rule:
    return Rule(
        (key, "train.phases"),
        lambda value, phases: bool(phases),
        "no effect beside train.phases",
        f"every phase has its own {own_key}",
        "Remove one of the two; --set KEY=null removes a key",
    )


def _cannot_be_cached(key: str) -> Rule:
    return Rule(
        ("data.cached_views", key),
        lambda views, mixing: views not in ("auto", 0) and mixing > 0,
        f"{{0}} with {key}: {{1}}",
        "images are mixed before they enter the network, so nothing can be computed once",
        "Remove one of the two",
    )


def _nothing_is_frozen(views: object, freeze: object, phases: Sequence[object] | None) -> bool:
    specs = [p.get("freeze") for p in phases if isinstance(p, dict)] if phases else [freeze]
    return views not in ("auto", 0) and bool(specs) and all(spec == "none" for spec in specs)


def _epochs_of(phases: Sequence[object], *, frozen: bool = False) -> list[int]:
    """The epochs of each phase, or of each that freezes something; none where one is malformed."""
    found = [phase for phase in phases if isinstance(phase, dict)]
    if len(found) < len(phases) or not all(isinstance(p.get("epochs"), int) for p in found):
        return []
    return [p["epochs"] for p in found if not frozen or p.get("freeze") != "none"]


def _never_stops(patience: int, epochs: Sequence[int]) -> bool:
    """Whether every phase ends before `patience` epochs in a row are without improvement."""
    if not patience or not epochs:
        return False
    first, *others = epochs
    return patience >= max([first - 1, *others])  # the very first epoch always improves


def _needs_published_width(row: str) -> Rule:
    widths = widths_with_weights(row)
    return Rule(
        ("model.width_mult", "model.arch", "model.weights"),
        lambda width, arch, weights: (
            arch == row and weights in PUBLISHED_NAMES and width not in widths
        ),
        "{0} with model.arch: {1} and model.weights: {2}",
        "weights are published for a width_mult of " + ", ".join(f"{w:g}" for w in widths),
        "Choose one of these, or set model.weights to none or to a file",
    )


RULES = (
    _beside_phases("train.epochs", "epochs"),
    _beside_phases("model.freeze", "freeze"),
    _beside_phases("train.lr", "lr"),
    Rule(
        ("train.momentum", "train.optimizer"),
        lambda momentum, optimizer: optimizer != "sgd",
        "no effect with train.optimizer: {1}",
        "only sgd has a momentum of its own",
        "Remove it, or set train.optimizer: sgd",
    ),
    Rule(
        ("train.momentum", "train.schedule", "train.optimizer"),
        lambda momentum, schedule, optimizer: schedule == "onecycle" and optimizer == "sgd",
        "no effect with train.schedule: onecycle",
        "onecycle moves the momentum between 0.95 and 0.85",
        "Remove it, or set train.schedule: cosine",
    ),
    Rule(
        ("train.warmup_epochs", "train.schedule"),
        lambda warmup, schedule: warmup > 0 and schedule == "onecycle",
        "{0} with train.schedule: onecycle",
        "onecycle has a warmup of its own",
        "Remove it, or set train.schedule: cosine",
    ),
    Rule(
        ("train.warmup_epochs", "train.epochs", "train.phases"),
        lambda warmup, epochs, phases: not phases and warmup > 0 and warmup >= epochs,
        "{0} with train.epochs: {1}",
        "a warmup shorter than the training was expected",
        "Lower it, or raise train.epochs",
    ),
    *(_cannot_be_cached(key) for key in ("train.mixup", "train.cutmix")),
    Rule(
        ("data.cached_views", "data.augment"),
        lambda views, augment: views not in ("auto", 0, 1) and augment == "none",
        "{0} with data.augment: none",
        "without augmentation all views of an image are the same",
        "Remove it, or set data.augment: crop_flip",
    ),
    Rule(
        ("data.cached_views", "train.epochs", "train.phases"),
        lambda views, epochs, phases: not phases and views != "auto" and views > epochs,
        "{0} with train.epochs: {1}",
        "an epoch takes one view of each image, so the rest would never be seen",
        "Lower it, or raise train.epochs",
    ),
    Rule(
        ("data.cached_views", "train.phases"),
        lambda views, phases: (
            bool(phases)
            and views != "auto"
            and views > max(_epochs_of(phases, frozen=True), default=views)
        ),
        "{0}, but no phase of train.phases that freezes something has so many epochs",
        "an epoch takes one view of each image, so the rest would never be seen",
        "Lower it, or raise the epochs of a phase",
    ),
    Rule(
        ("train.early_stop", "train.epochs", "train.phases"),
        lambda patience, epochs, phases: not phases and _never_stops(patience, [epochs]),
        "{0} with train.epochs: {1}",
        "training ends before so many epochs in a row are without improvement",
        "Lower it, or raise train.epochs",
    ),
    Rule(
        ("train.early_stop", "train.phases"),
        lambda patience, phases: bool(phases) and _never_stops(patience, _epochs_of(phases)),
        "{0} with train.phases",
        "every phase ends before so many epochs in a row are without improvement",
        "Lower it, or raise the epochs of a phase",
    ),
    Rule(
        ("data.cached_views", "model.freeze", "train.phases"),
        _nothing_is_frozen,
        "{0}, but nothing is frozen",
        "only what is frozen can be computed once",
        "Remove it, or set model.freeze: features",
    ),
    Rule(
        ("data.crop_scale_min", "data.augment"),
        lambda scale, augment: augment == "none",
        "no effect with data.augment: none",
        "without augmentation nothing is cropped at random",
        "Remove one of the two",
    ),
    Rule(
        ("data.random_erasing", "data.augment"),
        lambda probability, augment: probability > 0 and augment == "none",
        "{0} with data.augment: none",
        "erasing is an augmentation",
        "Remove one of the two",
    ),
    Rule(
        ("model.reduced_tail", "model.arch"),
        lambda reduced, arch: reduced and not arch.startswith("mobilenet_v3"),
        "true with model.arch: {1}",
        "only mobilenet_v3_large and mobilenet_v3_small have a reduced tail",
        "Remove it, or change model.arch",
    ),
    Rule(
        ("model.reduced_tail", "model.weights", "model.arch"),
        lambda reduced, weights, arch: (
            reduced and weights in PUBLISHED_NAMES and arch.startswith("mobilenet_v3")
        ),
        "true with model.weights: {1}",
        "no weights are published for the reduced tail",
        "Remove it, or set model.weights to none or to a file",
    ),
    Rule(
        ("model.weights", "model.arch", "model.width_mult"),
        lambda weights, arch, width: (
            weights == STARTER and (arch, width) != (STARTER_ARCH, STARTER_WIDTH)
        ),
        "starter with model.arch: {1} and model.width_mult: {2}",
        f"the starter weights are of {STARTER_ARCH} at {STARTER_WIDTH}",
        "Change model.weights, or set model.arch and model.width_mult to these",
    ),
    *(_needs_published_width(arch) for arch in get_args(Arch)),
)
