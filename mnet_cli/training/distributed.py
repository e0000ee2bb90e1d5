"""Training by several processes: each takes a part of every batch, and all take the same steps.

What is drawn and averaged over a batch is so for the whole, global batch. Therefore any number of
processes trains the same network, up to the order in which numbers are added.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.overrides import TorchFunctionMode

from mnet_cli.errors import MnetError
from mnet_cli.system.machine import BATCH
from mnet_cli.system.process_group import ProcessGroup
from mnet_cli.system.signals import STOP_SIGNALS, DeferredSignals, StopSignal

T = TypeVar("T")

DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.feature_alpha_dropout)


@dataclass(frozen=True)
class Part:
    """The images of a global batch that one process takes: `start` to `stop` of `total`."""

    start: int
    stop: int
    total: int

    @property
    def is_whole(self) -> bool:
        """Whether that is all of them."""
        return self.stop - self.start == self.total

    @property
    def extra(self) -> int:
        """How many images before the first one are needed where images are mixed.

        Mixing pairs each image with the one before it, and the first with the last.
        """
        return 0 if self.is_whole else 1

    def indices(self, extra: int = 0) -> list[int]:
        """The places of the part's images in the batch, after so many that come before them."""
        return [place % self.total for place in range(self.start - extra, self.stop)]


def part_of(total: int, group: ProcessGroup) -> Part:
    """This process's part of a batch of `total` images.

    Of a batch with fewer images than processes, each process takes all.
    """
    if total < group.size:
        return Part(0, total, total)
    start, stop = (total * rank // group.size for rank in (group.rank, group.rank + 1))
    return Part(start, stop, total)


def images_of(total: int, group: ProcessGroup) -> range:
    """This process's part of `total` images to score; it may be empty.

    It begins at a multiple of `BATCH`, so that batches hold the same images for any number of
    processes.
    """
    blocks = -(-total // BATCH)
    start, stop = (blocks * rank // group.size * BATCH for rank in (group.rank, group.rank + 1))
    return range(min(start, total), min(stop, total))


class GlobalBatch(TorchFunctionMode):
    """Lets a network see a part of a batch as it would see the whole batch.

    A context manager for the forward pass. Batch norm in training mode uses the mean and variance
    of the global batch (as `torch.nn.SyncBatchNorm` does, but on every device), and dropout draws
    for the global batch and keeps the part.

    Args:
        part: Of this process.
        group: The processes.
    """

    def __init__(self, part: Part, group: ProcessGroup) -> None:
        super().__init__()
        self.part, self.group = part, group

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Replace batch norm and dropout; anything else is as it is."""
        kwargs = kwargs or {}
        if func is F.batch_norm:
            return self._batch_norm(*args, **kwargs)
        if func in DROPOUTS:
            return self._dropout(func, *args, **kwargs)
        return func(*args, **kwargs)

    def _dropout(
        self, func: Callable[..., Tensor], images: Tensor, p: float = 0.5,
        training: bool = True, inplace: bool = False,
    ) -> Tensor:  # fmt: skip
        if not training or not p:
            return images
        factors = func(images.new_ones((self.part.total, *images.shape[1:])), p, True)
        return images * factors[self.part.start : self.part.stop]

    def _batch_norm(
        self, images: Tensor, mean: Tensor | None, var: Tensor | None,
        weight: Tensor | None = None, bias: Tensor | None = None, training: bool = False,
        momentum: float = 0.1, eps: float = 1e-5,
    ) -> Tensor:  # fmt: skip
        if not training:
            return F.batch_norm(images, mean, var, weight, bias, False, momentum, eps)
        normalized: Tensor
        normalized, batch_mean, batch_var, count = _BatchNorm.apply(
            images, weight, bias, eps, self.group
        )
        if mean is not None and var is not None:
            unbiased = batch_var * (count / (count - 1))
            mean.mul_(1 - momentum).add_(batch_mean, alpha=momentum)
            var.mul_(1 - momentum).add_(unbiased, alpha=momentum)
        return normalized


class _BatchNorm(torch.autograd.Function):
    """Batch norm over the images of all processes (arXiv 1502.03167, algorithm 1).

    Gives the normalized images (N, C, …), the mean and biased variance (C,) of the global batch,
    and the number of its values for each channel.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, images: Tensor, weight: Tensor | None, bias: Tensor | None,
        eps: float, group: ProcessGroup,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        own = images.numel() / images.shape[1]
        kind = torch.promote_types(images.dtype, torch.float32)  # of statistics, as in PyTorch
        # What batch norm itself computes them with; torch.var_mean takes 20 times as long.
        mean, var = torch.batch_norm_update_stats(images.to(kind), None, None, 0.0)
        mean, var = mean.double(), var.double()
        count = torch.full((1,), own, dtype=torch.float64, device=images.device)
        sums = [count, own * mean, own * (var + mean.square())]
        group.sum(sums)
        count, mean = sums[0], sums[1] / sums[0]
        var = (sums[2] / count - mean.square()).clamp(min=0)
        mean, var = mean.to(kind), var.to(kind)
        normalized = F.batch_norm(images, mean, var, weight, bias, False, 0.0, eps)
        ctx.save_for_backward(images, weight, mean, var)  # type: ignore[arg-type]  # None is fine
        ctx.eps, ctx.group, ctx.count = eps, group, count  # type: ignore[attr-defined]
        ctx.mark_non_differentiable(mean, var, count)
        return normalized, mean, var, count

    @staticmethod
    def backward(ctx: Any, slope: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        images, weight, mean, var = ctx.saved_tensors
        # With fixed statistics PyTorch's own kernel gives the sums that are needed.
        _, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            slope, images, weight, mean, var, None, None, False, ctx.eps, [False, True, True]
        )
        sums = [some.to(torch.float64, copy=True) for some in (by_weight, by_bias)]
        ctx.group.sum(sums)
        scale = (var + ctx.eps).rsqrt()
        gain = scale if weight is None else scale * weight
        # gain · (slope - Σ slope / count - x̂ · Σ slope·x̂ / count). What is linear in the images is
        # a batch norm with fixed statistics, which needs one pass.
        per_value = -gain * scale * (sums[0] / ctx.count).to(mean.dtype)
        constant = -gain * (sums[1] / ctx.count).to(mean.dtype)
        one, shape = torch.ones_like(mean), (1, -1, *[1] * (images.ndim - 2))
        through = F.batch_norm(images, mean, one, per_value, constant, False, 0.0, 0.0)
        through.addcmul_(slope, gain.to(slope.dtype).view(shape))
        if weight is None:
            by_weight = by_bias = None
        return through, by_weight, by_bias, None, None


class Share(NamedTuple):
    """What one process does of a step: how it sees its images, and what its loss counts."""

    forward: Any
    weight: float | Tensor


def share_of(
    part: Part, group: ProcessGroup, criterion: nn.CrossEntropyLoss, labels: Tensor, *, mixed: bool
) -> Share:
    """How a process takes its part in a step of all.

    Args:
        part: Of this process.
        group: The processes.
        criterion: The loss, a mean over its images.
        labels: Of the global batch (N,).
        mixed: Images are mixed; the loss then has no weights of classes in its denominator.

    Returns:
        A context manager for the forward pass, and what the loss of the part is multiplied by so
        that the sum over all processes is the loss of the global batch.
    """
    if part.is_whole:  # there are fewer images than processes
        return Share(nullcontext(), 1 / group.size)
    weight: float | Tensor = (part.stop - part.start) / part.total
    if criterion.weight is not None and not mixed:
        weights = criterion.weight[labels]
        weight = weights[part.start : part.stop].sum() / weights.sum()
    return Share(GlobalBatch(part, group), weight)


def sum_gradients(module: nn.Module, loss: Tensor, group: ProcessGroup) -> Tensor:
    """Sum gradients and loss over all processes, and return the loss."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    total = loss.detach().clone()
    group.sum([*gradients, total])
    return total


def synchronized_batches(
    batches: Iterable[T], group: ProcessGroup, signals: DeferredSignals
) -> Iterator[T]:
    """Yield this process's batches, each once all processes have theirs.

    A signal to one process, or an image that one cannot read, thereby stops all of them between
    the same two steps.

    Args:
        batches: Of this process; all have the same number.
        group: The processes.
        signals: The caller defers them.

    Raises:
        StopSignal: One process has received a signal.
        MnetError: One process could not load its batch.
    """
    source = iter(batches)
    while True:
        batch, failure = None, None
        try:
            batch = next(source, None)
        except MnetError as error:
            failure = error
        stops = [float(signals.waiting == number) for number in STOP_SIGNALS]
        found = torch.tensor([float(failure is not None), *stops])
        group.sum([found])
        failed, *stopped = found.tolist()
        if failed:
            raise failure or _failure_of_another(group)
        for number, count in zip(STOP_SIGNALS, stopped, strict=True):
            if count:
                raise StopSignal(number)
        if batch is None:
            return
        yield batch


def _failure_of_another(group: ProcessGroup) -> MnetError:
    """The error that another process tells when it ends."""
    try:
        group.barrier()
    except MnetError as error:
        return error
    raise AssertionError("a process that failed does not go on")
