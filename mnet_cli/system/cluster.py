"""Work on the machines of a Ray cluster (https://docs.ray.io/en/latest/data/data.html).

Ray Data starts workers, sends them the numbers of what is to do, and does again what a machine that
is lost has not delivered. Results come to the process that asked, which alone writes.
"""

import logging
import os
import pickle
import platform
import socket
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from mnet_cli.errors import MachineError, MnetError, UsageError
from mnet_cli.system.machine import use_one_core
from mnet_cli.system.quiet import quiet
from mnet_cli.system.signals import raise_on_signals
from mnet_cli.system.urls import without_credentials

T = TypeVar("T")

LOCAL = "local"  # an address: a cluster of this machine alone, for one command
LEAST_CPUS = 2  # one for the worker and one for the task that gives out the work
MOST_BATCHES = 32  # that a worker takes at a time, and a lost machine has to do again
CONNECT_SECONDS = 10.0
TURNS = 8  # of each worker at least, so that all end at about the same time
VARIABLES = ("MNET_", "AWS_", "GOOGLE_", "XDG_CACHE_HOME", "OMP_WAIT_POLICY")  # workers get these

Work = Callable[[range], T]


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Use the Ray cluster at an address while the block runs.

    Args:
        address: `local`, `auto` for the one that runs on this machine, or as `ray.init` takes it.

    Raises:
        MachineError: Ray is not installed, there is no cluster, or it is too small.
        UsageError: The address is that of a Ray client.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its errors come as exceptions too
    _check_address(address)
    try:
        with quiet():
            import ray
            import ray.data

            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                include_dashboard=False if address == LOCAL else None,
            )
        raise_on_signals()  # Ray has put handlers of its own in their place
    except ImportError as error:
        raise MachineError(
            f"--ray {address}",
            "needs a package that is not installed",
            next_step='Run: pip install "mnet-cli[ray]"',
        ) from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _no_cluster(address, error) from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context.print_on_execution_start = False
    try:
        cpus = _cpus()
        if cpus < LEAST_CPUS:
            raise MachineError(
                f"--ray {address}",
                f"the cluster has {cpus} CPU, but {LEAST_CPUS} are needed",
                next_step="Add a machine, or run the command without --ray",
            )
        yield
    finally:
        ray.shutdown()


def map_on_cluster(
    open_work: Callable[[], Work[T]], count: int, batch: int
) -> Generator[tuple[range, T], None, None]:
    """Yield what workers on the cluster make of items 0 to `count`, in the order they are ready.

    Each item is in one result, also if a machine is lost. To be called while `connected`.

    Args:
        open_work: Called once in each worker, in the working folder of this process; gives a
            function that takes the numbers of some items. It is pickled.
        count: Of the items.
        batch: Items that belong together; a worker takes several batches at a time.

    Raises:
        MnetError: A worker raised it.
        MachineError: The cluster was lost.
    """
    import ray
    import ray.data
    from ray.exceptions import RayError

    cpus = _cpus()
    together = batch * max(1, min(MOST_BATCHES, count // (batch * cpus * TURNS)))
    starts = range(0, count, together)
    # Not in Ray's own settings for workers, which it writes into logs.
    variables = {name: value for name, value in os.environ.items() if name.startswith(VARIABLES)}
    shared = ray.put((variables, Path.cwd(), open_work, count, together))  # once a machine
    results = (
        ray.data.range(len(starts), override_num_blocks=max(1, len(starts)))
        .map_batches(
            _Worker,
            fn_constructor_args=(shared,),
            batch_size=1,
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(
                min_size=1, max_size=max(1, min(cpus - 1, len(starts)))
            ),
        )
        .iter_batches(batch_size=None, prefetch_batches=0)
    )
    try:
        for block in results:
            for number, content in zip(block["id"].tolist(), block["result"], strict=True):
                result = pickle.loads(content)  # noqa: S301  a worker of this cluster made it
                if isinstance(result, MnetError):
                    raise result
                yield _items(number, count, together), result
    except RayError as error:
        raise MachineError(
            "the Ray cluster",
            f"the work was lost ({type(error).__name__})",
            next_step="Check its machines, then run the command again",
        ) from error


class _Worker:
    """One process of the cluster."""

    def __init__(self, shared: Any) -> None:
        import ray

        variables, folder, open_work, self.count, self.together = ray.get(shared)
        os.environ.update(variables)
        self.work: Work[Any] | None = None
        self.error: MnetError | None = None
        try:
            os.chdir(folder)  # relative paths are those of the process that asked
            use_one_core()
            self.work = open_work()
        except MnetError as error:
            self.error = error
        except OSError as error:
            self.error = MachineError(
                str(folder),
                f"cannot be used on the machine {platform.node()} ({error.strerror or error})",
                next_step="Use a folder that all machines share",
            )

    def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        numbers = block["id"].tolist()
        results = [self._result(_items(n, self.count, self.together)) for n in numbers]
        # As bytes: Ray would turn lists of numbers into arrays.
        return {"id": block["id"], "result": list(map(pickle.dumps, results))}

    def _result(self, items: range) -> Any:
        if self.work is None:
            return self.error
        try:
            return self.work(items)
        except MnetError as error:
            return error


def _check_address(address: str) -> None:
    """Refuse a host and port where nothing answers; Ray would try for minutes."""
    if "://" in address:
        raise UsageError(
            f"--ray {without_credentials(address)}",
            "a client of Ray cannot run this",
            next_step="Give HOST:6379 on a machine of the cluster, or use ray job submit",
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> MachineError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return MachineError(
        f"--ray {address}",
        f"no cluster there ({reason})",
        next_step='Start one with "ray start --head", or use --ray local',
    )


def _cpus() -> int:
    """CPUs of the cluster."""
    import ray

    resources: dict[str, float] = ray.cluster_resources()
    return int(resources.get("CPU", 0))


def _items(number: int, count: int, together: int) -> range:
    return range(number * together, min((number + 1) * together, count))
