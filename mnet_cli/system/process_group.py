"""The processes that train one network together: their ranks, their sums and their errors.

A launcher such as torchrun starts them and sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and
MASTER_PORT (https://docs.pytorch.org/docs/stable/elastic/run.html). torch.distributed connects
them: gloo or NCCL sums tensors, and a store of small values passes errors on.
"""

import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from traceback import clear_frames
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from mnet_cli import errors
from mnet_cli.errors import MachineError, MnetError, UsageError
from mnet_cli.system.signals import StopSignal

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")

GROUP_TIMEOUT = timedelta(minutes=10)  # for all processes to start, and to take part in one sum
HEARTBEAT = 1.0  # seconds between two looks at the store, and two signs that a process lives
HEARTBEAT_TIMEOUT = 20.0  # seconds without such a sign after which a process counts as dead
ERROR_TIMEOUT = 5.0  # seconds to wait for the error of a process whose connection ended
EXIT_TIMEOUT = 10.0  # seconds that a process waits until process 0 has reported its error
SMALL = 256_000  # bytes that a process sends at most to sum a tensor in one step
LONGEST_PAUSE = 0.05  # seconds between two looks at a barrier

# Variables by which other launchers say how many copies they start.
OTHERS = {
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpiexec",
    "SLURM_STEP_NUM_TASKS": "srun",
}
ADVICE = 'Start it with "torchrun --nproc-per-node N -m mnet_cli train ...", or start one process'


class ProcessGroup:
    """The processes of one training; this class stands for a process that is alone.

    Attributes:
        rank: Of this process, from 0.
        size: Number of processes.
        local_rank: Of this process among those on its machine, from 0.
        restarts: How often the launcher has started all of them again.
        launch: Which launch this is; empty if the launcher does not say.
    """

    rank, size, local_rank, restarts, launch = 0, 1, 0, 0, ""

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes: the one of rank 0."""
        return self.rank == 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def check(self) -> None:
        """Raise the error of another process, if one has failed."""

    def from_main(self, make: Callable[[], T]) -> T:
        """What `make` returns in process 0, in every process; the others wait for it.

        It must be possible to pickle it.
        """
        return make()

    def barrier(self) -> None:
        """Wait, however long, until all processes are here."""

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in the order of their ranks."""
        return [value]

    def sum(self, tensors: "Sequence[Tensor]") -> None:
        """Replace each tensor by its sum over all processes; all of one type and device."""

    @contextmanager
    def sharing(self, folder: Path) -> Iterator[tuple[int, int]]:
        """Yield which of the processes that see the same `folder` this one is, and their number.

        `folder` exists. All processes must enter and leave the block.
        """
        yield 0, 1

    def device(self, chosen: "torch.device") -> "torch.device":
        """The device of this process, where `chosen` is the kind that all use."""
        return chosen


class LaunchedGroup(ProcessGroup):
    """Processes that a launcher has started; a context manager that joins and leaves them.

    If the block ends with an error in one process, it ends in all of them with that error, within
    `HEARTBEAT` seconds wherever `check` is called or processes wait for each other.

    Args:
        rank: As in `ProcessGroup`.
        size: As in `ProcessGroup`.
        local_rank: As in `ProcessGroup`.
    """

    def __init__(self, rank: int, size: int, local_rank: int) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self.restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        run = os.environ.get("TORCHELASTIC_RUN_ID", "none")
        # Without --rdzv-id every run is called "none"; then the agent's process tells them apart.
        self.launch = run if run != "none" else f"{platform.node()}-{os.getppid()}"
        self._barriers = 0
        self._failure: BaseException | None = None
        self._is_over = threading.Event()

    def __enter__(self) -> Self:
        import torch
        import torch.distributed as dist
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        backend = "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(self.local_rank)
            backend = "cpu:gloo,cuda:nccl"
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        try:
            found, _, _ = next(rendezvous("env://", timeout=GROUP_TIMEOUT))
            # torchrun keeps the store, and what is in it, when it starts all processes again.
            store = PrefixStore(f"start {self.restarts}", found)
            dist.init_process_group(
                backend, store=store, rank=self.rank, world_size=self.size, timeout=GROUP_TIMEOUT
            )
        except (RuntimeError, ValueError) as error:
            raise MachineError(
                where,
                f"process {self.rank} of {self.size} cannot join the others "
                f"({str(error).splitlines()[0]})",
                next_step="Check MASTER_ADDR, MASTER_PORT and that all processes were started",
            ) from error
        self._store = PrefixStore("mnet", store)
        self._watcher = threading.Thread(target=self._watch_others, daemon=True)
        self._watcher.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        import torch.distributed as dist

        try:
            if error is None:
                self.barrier()
        finally:
            if error is not None:
                self._report(error)
                _release(error)
            self._is_over.set()
            self._watcher.join()
            with suppress(RuntimeError, ValueError):
                dist.destroy_process_group()  # what waits for this process goes on with an error
            self._wait_for_main()

    def check(self) -> None:
        """As in `ProcessGroup`."""
        if self._failure is not None:
            raise self._failure

    def from_main(self, make: Callable[[], T]) -> T:
        """As in `ProcessGroup`."""
        import torch
        import torch.distributed as dist

        values = [make() if self.is_main else None]
        self.barrier()
        with self._connected():
            dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return values[0]  # type: ignore[return-value]  # process 0 has sent it

    def barrier(self) -> None:
        """As in `ProcessGroup`."""
        # By the store: a sum would fail after the time that processes have for it.
        self._barriers += 1
        key, pause = f"barrier/{self._barriers}", 0.001
        with self._connected():
            arrived = self._store.add(key, 1)
            while arrived < self.size:
                time.sleep(pause)
                self.check()
                arrived, pause = self._store.add(key, 0), min(2 * pause, LONGEST_PAUSE)

    def gather(self, value: T) -> list[T]:
        """As in `ProcessGroup`."""
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        self.barrier()
        with self._connected():
            dist.all_gather_object(values, value)
        return values

    def sum(self, tensors: "Sequence[Tensor]") -> None:
        """As in `ProcessGroup`."""
        import torch
        import torch.distributed as dist

        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        with self._connected():
            if flat.is_cpu and flat.nbytes * (self.size - 1) <= SMALL:
                flat = self._exchange(flat)
            else:
                dist.all_reduce(flat)
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.detach().copy_(part.view_as(tensor))

    def _exchange(self, own: "Tensor") -> "Tensor":
        """The sum over all processes, which send each other all they have.

        That is one message where gloo's sum waits for two, and for a thread of its own.
        """
        import torch
        import torch.distributed as dist

        others = [rank for rank in range(self.size) if rank != self.rank]
        received = {rank: torch.empty_like(own) for rank in others}
        sent = [dist.isend(own, rank) for rank in others]
        for work in [dist.irecv(received[rank], rank) for rank in others] + sent:
            work.wait()  # type: ignore[union-attr]  # None is for processes outside of the group
        received[self.rank] = own
        total = received[0].clone()  # in one order, so that all get the same bits
        for rank in range(1, self.size):
            total += received[rank]
        return total

    @contextmanager
    def sharing(self, folder: Path) -> Iterator[tuple[int, int]]:
        """As in `ProcessGroup`."""
        token = self.from_main(lambda: secrets.token_hex(8))
        names = [f".{token}-{rank}" for rank in range(self.size)]
        own = folder / names[self.rank]
        own.touch()
        try:
            self.barrier()
            seen = self.gather([(folder / name).exists() for name in names])
            # A network file system may show a new file later to some; it must be seen both ways.
            peers = [r for r in range(self.size) if seen[self.rank][r] and seen[r][self.rank]]
            yield peers.index(self.rank), len(peers)
            self.barrier()
        finally:
            own.unlink(missing_ok=True)

    def device(self, chosen: "torch.device") -> "torch.device":
        """As in `ProcessGroup`."""
        import torch

        return torch.device("cuda", self.local_rank) if chosen.type == "cuda" else chosen

    @contextmanager
    def _connected(self) -> Iterator[None]:
        """Turn the error of a connection that broke into that of the process at its other end."""
        try:
            yield
        except RuntimeError as error:
            ends = time.monotonic() + ERROR_TIMEOUT
            while self._failure is None and time.monotonic() < ends:
                time.sleep(0.1)
            if self._failure is None:
                self._failure = _lost("another process")
            raise self._failure from error

    def _watch_others(self) -> None:
        """Look in the store for errors and signs of life, until the block ends."""
        watched = [rank for rank in range(self.size) if rank != self.rank]
        if not self.is_main:
            watched = [0]  # which watches all others
        heartbeats = dict.fromkeys(watched, (0, time.monotonic()))
        try:
            while self._failure is None:
                self._store.add(f"alive/{self.rank}", 1)
                if self._store.check(["error"]):
                    self._failure = _from_text(self._store.get("error").decode())
                for rank in watched:
                    count, now = self._store.add(f"alive/{rank}", 0), time.monotonic()
                    if count != heartbeats[rank][0]:
                        heartbeats[rank] = count, now
                    elif now - heartbeats[rank][1] > HEARTBEAT_TIMEOUT and self._failure is None:
                        self._failure = _lost(f"process {rank}")
                if self._is_over.wait(HEARTBEAT):
                    return
        except RuntimeError:  # the store has ended with process 0
            if self._failure is None:
                self._failure = _lost("process 0")

    def _report(self, error: BaseException) -> None:
        """Put an error into the store, unless there is an earlier one."""
        with suppress(RuntimeError):
            self._store.compare_set("error", "", _as_text(error))

    def _wait_for_main(self) -> None:
        """Wait until process 0 has written what there is to write, and it until all know that.

        torchrun stops all processes when it sees that one has failed, and process 0 may hold the
        store.
        """
        with suppress(RuntimeError):
            left, ends = self._store.add("left", 1), time.monotonic() + EXIT_TIMEOUT
            if self.is_main:
                self._store.set("main left", "")
            while time.monotonic() < ends:
                if self._store.check(["main left"]) if not self.is_main else left >= self.size:
                    return
                time.sleep(LONGEST_PAUSE)
                left = self._store.add("left", 0)


def join_group() -> ProcessGroup:
    """The group that the environment of this process says that it belongs to.

    Raises:
        UsageError: A launcher has started several processes and does not say which this one is.
    """
    size = os.environ.get("WORLD_SIZE", "")
    if "RANK" in os.environ and size:
        numbers = [_number(name) for name in ("RANK", "WORLD_SIZE")]
        local = _number("LOCAL_RANK") if "LOCAL_RANK" in os.environ else 0
        rank, total = numbers
        if rank >= total:
            raise UsageError(f"RANK={rank}", f"not below WORLD_SIZE={total}", next_step=ADVICE)
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if total > 1 and missing:
            raise UsageError(
                f"WORLD_SIZE={total}", f"{' and '.join(missing)} not set", next_step=ADVICE
            )
        if not missing:
            return LaunchedGroup(rank, total, local)
    copies = {"WORLD_SIZE": "a launcher", **OTHERS}
    for name, launcher in copies.items():
        count = os.environ.get(name, "")
        if count.isdecimal() and int(count) > 1:
            raise UsageError(
                f"{name}={count}",
                f"{launcher} started {count} processes without RANK and WORLD_SIZE, so each would "
                "train a run of its own",
                next_step=ADVICE,
            )
    return ProcessGroup()


def _release(error: BaseException | None) -> None:
    """Free what the frames of an error hold, such as connections, which only then are closed."""
    while error is not None:
        clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _number(name: str) -> int:
    value = os.environ[name]
    if not value.isdecimal():
        raise UsageError(f"{name}={value}", "not a number", next_step=ADVICE)
    return int(value)


def _lost(who: str) -> MachineError:
    return MachineError(
        who,
        "ended without an error message, perhaps killed for lack of memory",
        next_step='See its own output, then run "mnet train --resume" with the same launcher',
    )


def _as_text(error: BaseException) -> str:
    """An error as JSON, for the other processes."""
    if isinstance(error, StopSignal):
        return json.dumps({"signal": int(error.number)})
    if not isinstance(error, MnetError):
        error = MnetError("internal", f"{type(error).__name__}: {error}")
    parts = [error.where, error.found, error.next_step, list(error.details)]
    return json.dumps({"kind": type(error).__name__, "parts": parts})


def _from_text(text: str) -> BaseException:
    """The error that `_as_text` has written."""
    content = json.loads(text)
    if "signal" in content:
        return StopSignal(content["signal"])
    kind = getattr(errors, content["kind"], MnetError)
    failure: MnetError = kind(*content["parts"])
    return failure
