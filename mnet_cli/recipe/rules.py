"""Keys that contradict one another or would have no effect, as data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mnet_cli.recipe.schema import Model
from mnet_cli.system.plugins import ARCHITECTURES

PUBLISHED = ("imagenet", "imagenet-v1")  # what a recipe may call published weights
STARTER = "starter"
OF_STEPS = (  # keys of `train` that say how gradient descent goes
    "optimizer", "lr", "momentum", "weight_decay", "schedule", "warmup_epochs", "label_smoothing",
    "mixup", "cutmix", "ema", "clip_grad_norm", "amp",
)  # fmt: skip
OF_EPOCHS = ("epochs", "phases", "early_stop", "monitor", "save_minutes")
DIFFERENT_VIEWS = {"none": 1, "flip": 2}  # of an image, by data.augment; any number elsewhere


@dataclass(frozen=True)
class Rule:
    """A condition on a key that a recipe gives, and on the keys that it depends on.

    Args:
        keys: The key that the rule is about, then those it depends on.
        broken: Takes the keys' values in that order; true when the first cannot stand.
        found: What is wrong; `{0}`, `{1}` … stand for the values.
        reason: Why it is wrong, in the same form.
        next_step: What to do next, likewise, or a function of the values.
    """

    keys: tuple[str, ...]
    broken: Callable[..., bool]
    found: str
    reason: str = ""
    next_step: str | Callable[..., str] = ""

    def texts(self, values: Sequence[Any]) -> tuple[str, str]:
        """What is wrong, with the reason, and what to do, for these values of the keys."""
        step = self.next_step
        advice = step.format(*values) if isinstance(step, str) else step(*values)
        found = f"{self.found}, because {self.reason}" if self.reason else self.found
        return found.format(*values), advice


def _beside_phases(key: str, own_key: str) -> Rule:
    return Rule(
        (key, "train.phases"),
        lambda value, phases: bool(phases),
        "no effect beside train.phases",
        f"every phase has its own {own_key}",
        "Remove one of the two; --set KEY=null removes a key",
    )


def _beside_exact(key: str, reason: str) -> Rule:
    return Rule(
        (key, "train.solver"),
        lambda value, solver: solver == "exact",
        "no effect with train.solver: exact",
        reason,
        "Remove it (--set KEY=null removes a key), or set train.solver: sgd",
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


def _no_option(name: str) -> Rule:
    """An option that the architecture does not have; its default changes nothing."""
    neutral = Model.model_fields[name].default
    return Rule(
        (f"model.{name}", "model.arch"),
        lambda value, arch: value != neutral and name not in _options(arch),
        f"{{0}} with model.arch: {{1}}, which has no {name}",
        next_step="Remove it, or change model.arch",
    )


def _options(arch: str) -> frozenset[str]:
    options: frozenset[str] = ARCHITECTURES.load(arch).options
    return options


def _widths(arch: str) -> list[float]:
    """The widths for which weights are published."""
    widths: list[float] = ARCHITECTURES.load(arch).widths
    return widths


def _is_starter(arch: str, width: float) -> bool:
    starter = ARCHITECTURES.load(arch).starter
    return starter is not None and starter.width_mult == width


def _starters() -> str:
    """The models that have starter weights."""
    found = [(name, one.starter) for name, one in ARCHITECTURES.usable()]
    return ", ".join(f"{name} at width_mult {one.width_mult:g}" for name, one in found if one)


RULES = (
    _beside_phases("train.epochs", "epochs"),
    _beside_phases("model.freeze", "freeze"),
    _beside_phases("train.lr", "lr"),
    *(_beside_exact(f"train.{key}", "it takes no steps of gradient descent") for key in OF_STEPS),
    *(
        _beside_exact(f"train.{key}", "there is one result, not one of each epoch")
        for key in OF_EPOCHS
    ),
    Rule(
        ("model.freeze", "train.solver"),
        lambda freeze, solver: solver == "exact" and freeze != "all_but_last",
        "no effect with train.solver: exact",
        "it trains the last linear layer alone",
        "Remove it (--set KEY=null removes a key), or set train.solver: sgd",
    ),
    _beside_exact("model.dropout", "it trains without dropout"),
    _beside_exact("data.batch_size", "it learns from all images at once"),
    Rule(
        ("data.balance", "train.solver"),
        lambda balance, solver: solver == "exact" and balance == "sampler",
        "sampler with train.solver: exact",
        "it learns from all images at once",
        "Set data.balance: class_weights",
    ),
    Rule(
        ("data.cached_views", "train.solver"),
        lambda views, solver: solver == "exact" and views == 0,
        "0 with train.solver: exact",
        "it learns from cached features",
        "Remove it, or set train.solver: sgd",
    ),
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
        "the warmup would last as long as the training",
        "Lower it, or raise train.epochs",
    ),
    *(_cannot_be_cached(key) for key in ("train.mixup", "train.cutmix")),
    Rule(
        ("data.cached_views", "data.augment"),
        lambda views, augment: (
            views not in ("auto", 0) and views > DIFFERENT_VIEWS.get(augment, views)
        ),
        "{0} with data.augment: {1}",
        "an image has one view with none and two with flip",
        "Lower it, or set data.augment: crop_flip",
    ),
    Rule(
        ("data.cached_views", "train.epochs", "train.phases", "train.solver"),
        lambda views, epochs, phases, solver: (
            solver == "sgd" and not phases and views != "auto" and views > epochs
        ),
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
        "{0} with no phase in train.phases that freezes something and has so many epochs",
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
        "{0} with nothing frozen",
        "only what is frozen can be computed once",
        "Remove it, or set model.freeze: features",
    ),
    Rule(
        ("data.crop_scale_min", "data.augment"),
        lambda scale, augment: augment in DIFFERENT_VIEWS,
        "no effect with data.augment: {1}",
        "nothing is cropped at random",
        "Remove one of the two",
    ),
    Rule(
        ("data.random_erasing", "data.augment"),
        lambda probability, augment: probability > 0 and augment in DIFFERENT_VIEWS,
        "{0} with data.augment: {1}",
        "nothing is random then",
        "Remove one of the two",
    ),
    *(_no_option(name) for name in ("width_mult", "round_nearest", "reduced_tail", "dropout")),
    Rule(
        ("model.reduced_tail", "model.weights", "model.arch"),
        lambda reduced, weights, arch: (
            reduced and weights in PUBLISHED and "reduced_tail" in _options(arch)
        ),
        "true with model.weights: {1}",
        "no weights are published for the reduced tail",
        "Remove it, or set model.weights to none or to a file",
    ),
    Rule(
        ("model.weights", "model.arch", "model.width_mult"),
        lambda weights, arch, width: weights == STARTER and not _is_starter(arch, width),
        "starter with model.arch: {1} and model.width_mult: {2}",
        next_step=lambda *_: f"Change model.weights, or choose a model with some: {_starters()}",
    ),
    Rule(
        ("model.width_mult", "model.arch", "model.weights"),
        lambda width, arch, weights: (
            weights in PUBLISHED and bool(_widths(arch)) and width not in _widths(arch)
        ),
        "{0} with model.arch: {1} and model.weights: {2}",
        next_step=lambda width, arch, weights: (
            f"Choose one of {', '.join(f'{w:g}' for w in _widths(arch))}, for which weights are "
            "published, or set model.weights to none or to a file"
        ),
    ),
    Rule(
        ("model.arch", "model.weights"),
        lambda arch, weights: weights in PUBLISHED and not _widths(arch),
        "{0} with model.weights: {1}",
        "no weights are published for it",
        "Set model.weights to none or to a file",
    ),
)
