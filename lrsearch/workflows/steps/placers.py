"""Where the workers of a search run: as processes of this machine, or where Ray places them."""

import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

from lrsearch.errors import ConfigError, LrsearchError
from lrsearch.spec.config import StudyConfig
from lrsearch.spec.registry import load_plugins, loaded_plugins

REACHED = 10.0  # seconds that the address of a cluster may take to answer


@dataclass(frozen=True)
class Task:
    """What each worker is to do; it is sent to other processes and machines.

    Attributes:
        config: of the study.
        storage: the URL of where its trials are, with its password; None for the folder.
        artifacts: where its large files are.
        out: the folder of the workers here; those elsewhere have one of their machine.
        home: the folder in which code is looked for, where the worker's machine has it.
        plugins: modules to import before.
    """

    config: StudyConfig
    storage: str | None
    artifacts: str | None
    out: Path
    home: Path
    plugins: tuple[str, ...] = field(default_factory=loaded_plugins)


class Placer(Protocol):
    """Starts workers; each tells what :func:`work` returns."""

    count: int

    def start(self, index: int) -> "Future[dict[str, str] | None]":
        """Start worker ``index``, also again."""

    def lost(self, error: BaseException) -> bool:
        """Whether ``error`` says that a worker's process or machine is gone."""

    def stop(self, workers: "Iterable[Future[dict[str, str] | None]]") -> None:
        """End ``workers`` as Ctrl-C does, and let go of all else."""


def work(task: Task, device: str, out: Path, threads: int | None) -> dict[str, str] | None:
    """Work on the study until nothing is left to do.

    Returns:
        What is wrong, as :class:`LrsearchError` has it, and its kind.
    """
    if task.home.is_dir():
        os.chdir(task.home)
    import torch

    from lrsearch.spec.progress import Progress
    from lrsearch.workflows.search import search

    if threads:
        torch.set_num_threads(threads)
    try:
        load_plugins(task.plugins)
        config = task.config.model_copy(update={"device": device})
        search(config, out=out, progress=Progress(), storage=task.storage, artifacts=task.artifacts)
    except LrsearchError as error:
        return {"kind": type(error).__name__, "rule": error.rule, "value": str(error.value), "place": error.place, "remedy": error.remedy}
    return None


class LocalWorkers:
    """Processes of this machine, one for each GPU by default.

    Args:
        task: what to do.
        count: how many; None for one per GPU, or one.
    """

    def __init__(self, task: Task, count: int | None) -> None:
        import torch

        self._gpus = torch.cuda.device_count() if count is None or task.config.device.startswith("cuda") else 0
        self.count = count or self._gpus or 1
        self._task, self._pools = task, dict[Future[Any], ProcessPoolExecutor]()
        own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._threads = None if "OMP_NUM_THREADS" in os.environ else max(1, own // self.count)

    def start(self, index: int) -> "Future[dict[str, str] | None]":
        """See :class:`Placer`."""
        device = f"cuda:{index % self._gpus}" if self._gpus else self._task.config.device
        pool = ProcessPoolExecutor(1, get_context("spawn"))
        future = pool.submit(work, self._task, device, self._task.out, self._threads)
        self._pools[future] = pool
        return future

    def lost(self, error: BaseException) -> bool:
        """See :class:`Placer`."""
        return isinstance(error, BrokenProcessPool)

    def stop(self, workers: "Iterable[Future[dict[str, str] | None]]") -> None:
        """See :class:`Placer`."""
        for future in workers:
            for process in (self._pools[future]._processes or {}).values():
                if process.pid and process.is_alive():
                    os.kill(process.pid, signal.SIGINT)
        for pool in self._pools.values():
            pool.shutdown()


def _reach(address: str) -> None:
    """Check that somebody listens at ``address``, if that is HOST:PORT, as Ray tries it for minutes.

    Raises:
        OSError: nobody does.
    """
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=REACHED).close()


class RayWorkers:
    """Tasks of a Ray cluster, whose nodes have lrsearch and the code of model and data.

    Args:
        task: what to do.
        count: how many; None for one per GPU of the cluster, or one.
        address: of the cluster, as ``ray.init`` takes it.
        gpus: that a worker has.
        cpus: that a worker has.

    Raises:
        ConfigError: Ray is not installed, or there is no such cluster.
    """

    def __init__(self, task: Task, count: int | None, address: str, gpus: float, cpus: float) -> None:
        try:
            import ray
            from ray import is_initialized  # which a folder of that name has not
        except ImportError:
            remedy = "pip install 'lrsearch[ray]'"
            raise ConfigError("needs Ray", value="not installed", place="--ray", remedy=remedy) from None
        self._own, terminated = not is_initialized(), signal.getsignal(signal.SIGTERM)
        try:
            if self._own:
                _reach(address)
                ray.init(address=address, log_to_driver=False, configure_logging=False)
        except (OSError, ValueError, RuntimeError) as error:
            remedy = "Give the address that ray start printed, or auto on one of its machines."
            raise ConfigError("must be a Ray cluster", value=str(error), place="--ray", remedy=remedy) from None
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminated)  # Ray has put its own there
        self._ray, self._task = ray, task
        self._device = "cuda" if gpus and task.config.device == "cpu" else task.config.device
        self.count = count or (int(ray.cluster_resources().get("GPU", 0) // gpus) if gpus else 0) or 1
        self._work: Any = ray.remote(work).options(num_cpus=cpus, num_gpus=gpus, max_retries=0, name=f"lrsearch {task.config.name}")
        self._refs = dict[Future[Any], Any]()

    def start(self, index: int) -> "Future[dict[str, str] | None]":  # noqa: ARG002
        """See :class:`Placer`."""
        out = Path(tempfile.gettempdir()) / f"lrsearch-{self._task.config.name}"
        ref = self._work.remote(self._task, self._device, out, None)
        future: Future[dict[str, str] | None] = ref.future()
        self._refs[future] = ref
        return future

    def lost(self, error: BaseException) -> bool:
        """See :class:`Placer`."""
        kinds = self._ray.exceptions
        return isinstance(error, kinds.RayError) and not isinstance(error, kinds.RayTaskError | kinds.TaskCancelledError)

    def stop(self, workers: "Iterable[Future[dict[str, str] | None]]") -> None:
        """See :class:`Placer`."""
        for future in workers:
            self._ray.cancel(self._refs[future])
        if self._own:
            self._ray.shutdown()
