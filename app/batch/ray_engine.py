"""Captures and analyses of a batch as tasks of Ray, with the same numbers.

A task whose worker dies is run again, elsewhere. A cluster that is started here listens on this
machine alone, without dashboard; usage statistics are off.
"""

from __future__ import annotations

import os
import socket
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from headscope.app.batch import worker
from headscope.app.batch.job import Group, Job, versions
from headscope.app.batch.local_engine import Outcomes, Todo
from headscope.app.batch.schema import ModelSpec
from headscope.app.batch.worker import Failure, Outcome
from headscope.app.pipeline import Progress
from headscope.kernels.errors import InvalidInput, ResourceLimit

if TYPE_CHECKING:
    from headscope.app.batch.run import Engine

RETRIES = 3
"""Times that a task is run again after the death of its worker."""
HOST = "127.0.0.1"
CONNECT = 5.0
"""Seconds that a running cluster has to answer."""
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
# Without it Ray takes the address of this machine in its network, and listens there.
ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


@contextmanager
def started(job: Job, workers: int | None = None, address: str | None = None) -> Iterator[Engine]:
    """Start a cluster on this machine, or join one, and give the engine that uses it.

    ``workers`` are the cells at once on this machine, by default its cores divided by the threads
    of a cell. ``address`` is that of a running cluster, whose nodes need headscope and see the
    models at the same paths.
    """
    if address is not None and workers is not None:
        raise InvalidInput("--workers: a running cluster has its own; leave one of the two out")
    ray = _ray(alone=address is None or _is_local_only(address))
    options: dict[str, Any] = {"include_dashboard": False} if address is None else {}
    if workers:
        options["num_cpus"] = job.threads * workers
    try:
        ray.init(
            address=address or "local", namespace="headscope", log_to_driver=False,
            logging_level="error", configure_logging=True, **options,
        )  # fmt: skip
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        action = "start" if address is None else f"join {address}"
        reason = Failure.of(error).reason
        if address is not None:
            # Ray sends its token to no address that was given, unless it is set to.
            reason += "; a cluster that asks for a token is joined with RAY_AUTH_MODE=token"
        raise InvalidInput(f"engine: Ray does not {action}: {reason}") from error
    try:
        if address is not None:
            _check_versions(ray, address)
        if address is None and ray.util.get_node_ip_address() != HOST:
            raise InvalidInput("engine: Ray was imported before, and would listen on the network")
        _check(job, ray.cluster_resources())
        yield run
    finally:
        ray.shutdown()


def _ray(*, alone: bool = False) -> Any:
    # Read when Ray is imported.
    for name, value in (QUIET | (ALONE if alone else {})).items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise InvalidInput("engine: Ray is not installed; pip install 'headscope[ray]'") from error
    return ray


def _is_local_only(address: str) -> bool:
    """Return whether a cluster listens at 127.0.0.1 alone; refuse one that does not answer.

    Ray would try for minutes, and take the address of this machine in its network for 127.0.0.1.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise InvalidInput(f"--address: {address!r} is not HOST:PORT, as ray start prints it")
    if not _answers(host, int(port)):
        raise InvalidInput(f"--address: nothing answers at {address}; start one: ray start --head")
    if host not in (HOST, "localhost"):
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            return True
        return not _answers(probe.getsockname()[0], int(port))


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), CONNECT).close()
    except OSError:
        return False
    return True


def _check_versions(ray: Any, address: str) -> None:
    """Refuse a cluster that would compute with something else than the manifest says."""
    try:
        remote = ray.get(ray.remote(num_cpus=0)(_versions).remote(os.getcwd()))
    except ray.exceptions.RayError as error:
        reason = str(getattr(error, "cause", None) or error).strip().splitlines()[-1]
        raise InvalidInput(f"engine: {address} does not run headscope: {reason}") from error
    for name, local in versions().items():
        if remote.get(name) != local:
            raise InvalidInput(
                f"engine: {address} has {name} {remote.get(name)}, and this is {local}; install "
                "the same on both"
            )


def _check(job: Job, resources: dict[str, float]) -> None:
    """Refuse what would wait for ever."""
    cores = resources.get("CPU", 0)
    if cores < job.threads:
        raise ResourceLimit(f"threads: a cell asks for {job.threads}, the cluster has {cores}")
    for model in job.models:
        if (model.device or "").startswith("cuda") and not resources.get("GPU"):
            raise ResourceLimit(f"device: {model.name} asks for a GPU, and the cluster has none")


def gpus(model: ModelSpec, resources: dict[str, float]) -> int:
    """Return the number of GPUs of a task on a model: one where the model runs on one."""
    return 1 if model.device != "cpu" and resources.get("GPU", 0) >= 1 else 0


def run(job: Job, todo: Todo, progress: Progress | None = None) -> Outcomes:
    """Run the cells that are left as `local_engine.run` does; their steps are not reported."""
    ray = _ray()
    resources = ray.cluster_resources()
    # Captures wait in the cluster's memory: no more of them than keep it busy.
    ahead = 2 * max(1, int(resources.get("CPU", 1)) // job.threads)
    waiting = deque(todo)
    running: dict[Any, tuple[Group, str]] = {}
    while waiting or running:
        while waiting and len(running) < ahead:
            group, names = waiting.popleft()
            running |= _submit(ray, job, group, names, gpus(group.model, resources))
        (ready,), _ = ray.wait(list(running), num_returns=1)
        group, name = running.pop(ready)
        yield group, name, _fetched(ray, ready)


def _submit(
    ray: Any, job: Job, group: Group, names: Sequence[str], cards: int
) -> dict[Any, tuple[Group, str]]:
    """Pass the captures of a group and its analyses to the cluster: reference -> cell."""
    task = ray.remote(num_cpus=job.threads, num_gpus=cards, max_retries=RETRIES)
    root = os.getcwd()
    capture, join, analyze = task(_capture), task(_join), task(_analyze)
    slices = worker.group_slices(job, group)
    captures = [capture.remote(root, job, group, part) for part in slices]
    if len(captures) > 1:
        captures = [join.remote(root, job, group, *captures)]
    return {analyze.remote(root, job, group, name, captures[0]): (group, name) for name in names}


def _fetched(ray: Any, ready: Any) -> Outcome:
    """Fetch an outcome; a task whose workers died at every try has failed."""
    try:
        outcome: Outcome = ray.get(ready)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        return Failure(f"its worker was lost: {lines[0] if lines else type(cause).__name__}")
    return outcome


def _versions(root: str) -> dict[str, str]:
    _remove_from_path(root)
    return versions()


def _capture(root: str, job: Job, group: Group, part: slice) -> Any:
    _remove_from_path(root)
    return worker.capture_part(job, group, part)


def _join(root: str, job: Job, group: Group, *captures: Any) -> Any:
    _remove_from_path(root)
    return worker.join_parts(job, group, captures)


def _analyze(root: str, job: Job, group: Group, name: str, capture: Any) -> Outcome:
    _remove_from_path(root)
    return worker.analyze(job, group, name, capture)


def _remove_from_path(root: str) -> None:
    """Remove the working folder from the path, where Ray puts it.

    In the root of the repository, transformers would take our folder for its own kernels package.
    """
    sys.path[:] = [path for path in sys.path if path not in ("", root)]
