"""Batches on Ray: the same bytes as in one process, also when a worker is killed."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from refusals import check_message
from typer.testing import CliRunner

from headscope.app.batch import ray_engine
from headscope.app.batch.run import run
from headscope.app.batch.schema import ModelSpec
from headscope.app.batch.worker import Failure
from headscope.app.cli import app
from headscope.kernels.errors import HeadscopeError

ROOT = Path(__file__).parents[3]
COMMAND = "from headscope.app.cli import main; main()"
# A token of this run alone: otherwise Ray makes one, and leaves it in the home of the user.
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def start(file: Path, out: Path, *more: str, **variables: str) -> subprocess.Popen[str]:
    """Start a batch in the root of the repository; without options, on a cluster of its own.

    Ray puts that folder on the path of its workers, where transformers would find our kernels.
    """
    size = more or ("--workers", "2")
    arguments = ["batch", str(file), "--out", str(out), "--engine", "ray", *size]
    command, pipe = [sys.executable, "-P", "-c", COMMAND, *arguments], subprocess.PIPE
    surroundings = {**os.environ, **TOKEN, **variables}
    return subprocess.Popen(
        command, cwd=ROOT, env=surroundings, stdout=pipe, stderr=pipe, text=True
    )


def workers(process: subprocess.Popen[str], doing: str) -> list[psutil.Process]:
    """List the workers that are at a kind of task: Ray names their processes so."""
    result = []
    for one in psutil.Process(process.pid).children(recursive=True):
        try:
            if "".join(one.cmdline()).startswith(f"ray::{doing}"):
                result.append(one)
        except psutil.NoSuchProcess:
            continue
    return result


def listening(process: subprocess.Popen[str]) -> set[str]:
    """List the addresses that a cluster listens on."""
    tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    result = set()
    for one in tree:
        try:
            result |= {
                connection.laddr.ip
                for connection in one.net_connections()
                if connection.status == "LISTEN"
            }
        except psutil.NoSuchProcess:
            continue
    return result


@pytest.mark.cluster
def test_two_workers_of_which_one_is_killed_give_the_same_bytes(job, tmp_path, digests):
    submitted = job(
        "models: [headscope/bundled]\ntasks: [ioi]\nnumber: 5\nshard: 2\n"
        "analyses: [distractors, importance, entropy]\n"
    )
    process = start(tmp_path / "job.yaml", tmp_path / "ray")
    # Meanwhile, the same job in this process.
    local = run(submitted, tmp_path / "local")
    assert [one["state"] for one in local.cells] == ["failed", "done", "done"]
    killed, addresses = None, set()
    while killed is None and process.poll() is None:
        for one in workers(process, "_analyze")[:1]:
            addresses = listening(process)
            one.send_signal(signal.SIGKILL)
            killed = one.pid
        time.sleep(0.01)
    output, errors = process.communicate(timeout=300)
    assert killed is not None, errors
    assert addresses
    assert addresses <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    assert process.returncode == 1, errors
    assert "2 of 3 cells have a result" in output
    assert errors.count("failed: distractors, ") == 1
    assert digests(tmp_path / "ray") == digests(tmp_path / "local")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[str]:
    """A cluster of two cores on this machine, which somebody else has started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    alone = {**os.environ, **TOKEN, **ray_engine.QUIET, **ray_engine.ALONE}
    options = ["--head", "--block", "--num-cpus=2", "--include-dashboard=false"]
    place = ["--node-ip-address=127.0.0.1", f"--port={address.rpartition(':')[2]}"]
    # Its sockets lie there, and their paths must be short.
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        command = [sys.executable, "-P", "-m", "ray.scripts.scripts", "start", *options, *place]
        process = subprocess.Popen(
            [*command, f"--temp-dir={folder}"], cwd=tmp_path, env=alone, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 60
            while not ray_engine._answers(*split(address)) and time.monotonic() < deadline:
                time.sleep(0.2)
            yield address
            assert process.poll() is None, "a job that has joined leaves the cluster running"
        finally:
            process.terminate()
            process.wait(60)


def split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


@pytest.mark.cluster
def test_a_job_joins_a_running_cluster_and_gives_the_same_bytes(job, cluster, tmp_path, digests):
    text = "models: [headscope/bundled]\ntasks: [ioi]\nnumber: 3\nanalyses: [sinks, entropy]\n"
    submitted = job(text)
    process = start(tmp_path / "job.yaml", tmp_path / "ray", "--address", cluster)
    local = run(submitted, tmp_path / "local")
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "2 of 2 cells have a result" in output
    assert not local.failed
    assert digests(tmp_path / "ray") == digests(tmp_path / "local")
    # The driver of one job has gone, and another joins.
    process = start(tmp_path / "job.yaml", tmp_path / "again", "--address", cluster)
    assert process.communicate(timeout=300)[0].startswith("2 of 2 cells")


@pytest.mark.cluster
def test_a_job_without_the_token_of_a_cluster_is_refused(job, cluster, tmp_path):
    job("models: [headscope/bundled]\ntasks: [ioi]\nanalyses: [sinks]\n")
    options = ("--address", cluster)
    process = start(tmp_path / "job.yaml", tmp_path / "out", *options, RAY_AUTH_MODE="disabled")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2, errors
    assert f"error: engine: Ray does not join {cluster}: " in errors
    assert "is joined with RAY_AUTH_MODE=token" in errors


@pytest.mark.cluster
def test_a_cluster_of_other_versions_is_refused():
    import ray

    def cluster(answer):
        remote = SimpleNamespace(remote=lambda _: answer)
        return SimpleNamespace(
            get=lambda ready: ready(),
            exceptions=ray.exceptions,
            remote=lambda **_: lambda _: remote,
        )

    check = ray_engine._check_versions
    check(cluster(ray_engine.versions), "host:1")
    older = {**ray_engine.versions(), "torch": "1.0"}
    check_message("host:1 has torch 1.0, and this is", check, cluster(lambda: older), "host:1")

    def lacking():
        raise ray.exceptions.RaySystemError("No module named 'headscope'")

    check_message("does not run headscope: .*No module", check, cluster(lacking), "host:1")


@pytest.mark.cluster
def test_three_by_three_and_all_analyses_give_the_same_bytes(three_by_three, tmp_path, digests):
    process = start(tmp_path / "job.yaml", tmp_path / "ray")
    output, errors = process.communicate(timeout=1800)
    # Cells whose analysis does not suit the task are recorded as failed.
    assert process.returncode == 1, errors
    local = run(three_by_three, tmp_path / "local")
    assert f"{len(local.cells) - len(local.failed)} of {len(local.cells)} cells" in output
    assert len(local.failed) < len(local.cells) / 2
    assert digests(tmp_path / "ray") == digests(tmp_path / "local")


def test_what_a_cluster_lacks_is_refused(job):
    text = "models: [{model: headscope/bundled, device: cuda}]\ntasks: [ioi]\nanalyses: [sinks]\n"
    check_message("headscope/bundled asks for a GPU", ray_engine._check, job(text), {"CPU": 2.0})
    ray_engine._check(job(text), {"CPU": 2.0, "GPU": 1.0})
    with pytest.raises(HeadscopeError, match=r"threads: a cell asks for 4, the cluster has 2\.0"):
        ray_engine._check(job(text + "threads: 4\n"), {"CPU": 2.0, "GPU": 1.0})


def test_a_task_asks_for_a_gpu_where_its_model_runs_on_one():
    there = {"CPU": 2.0, "GPU": 4.0}
    models = [ModelSpec(model="m", device=device) for device in (None, "cuda", "cpu")]
    assert [ray_engine.gpus(model, there) for model in models] == [1, 1, 0]
    assert ray_engine.gpus(models[0], {"CPU": 2.0}) == 0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--engine", "rey"), "--engine: no 'rey'; choose local or ray"),
        (("--workers", "2"), "only of --engine ray"),
        (("--engine", "ray", "--workers", "2", "--address", "x:1"), "has its own"),
        (("--engine", "ray", "--address", "auto"), "'auto' is not HOST:PORT"),
        (("--engine", "ray", "--address", "127.0.0.1:1"), "nothing answers at 127.0.0.1:1"),
    ],
)
def test_options_that_do_not_go_together_are_refused(job, tmp_path, more, words):
    job("models: [headscope/bundled]\ntasks: [ioi]\nanalyses: [sinks]\n")
    arguments = ["batch", str(tmp_path / "job.yaml"), "--out", str(tmp_path / "out"), *more]
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, HeadscopeError)
    assert words in str(done.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.cluster
def test_a_worker_that_is_lost_for_good_is_the_reason_of_its_cell():
    import ray

    def lost(_):
        raise ray.exceptions.WorkerCrashedError

    outcome = ray_engine._fetched(SimpleNamespace(get=lost, exceptions=ray.exceptions), None)
    assert isinstance(outcome, Failure)
    assert outcome.reason.startswith("its worker was lost: The worker died unexpectedly")


def test_usage_statistics_and_the_network_are_off(monkeypatch):
    for name in (*ray_engine.QUIET, *ray_engine.ALONE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "ray", json)
    assert ray_engine._ray(alone=True) is json
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    monkeypatch.setitem(sys.modules, "ray", None)
    check_message(r"pip install 'headscope\[ray\]'", ray_engine._ray, alone=True)
    for name in (*ray_engine.QUIET, *ray_engine.ALONE):
        monkeypatch.delenv(name, raising=False)
