"""Train each run in a task of Ray. No torch.

Ray kills a task, and its training, when their sweep is gone; the same command goes on from the
checkpoint of the last epoch. A sweep that is to outlive its terminal is itself submitted to Ray.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from resnests.config.schema import Config, config_dict
from resnests.environment import COMMAND, command_line, python_path
from resnests.errors import UserError
from resnests.sweep.executors.nodes import Nodes
from resnests.sweep.executors.ray_node import node_task
from resnests.sweep.plan import Run
from resnests.sweep.process import log_line
from resnests.sweep.scheduler import REFUSED, Job, State
from resnests.sweep.stop import lock_until_exit

SLOWEST_SECONDS = 10.0  # between two polls
POLLED = 50  # queued tasks a poll, whether they began: Ray starts the first ones first
HEAD_SECONDS = 20.0  # without its head: Ray would end this process after 60, without a summary
_STOP_FILE = ".sweep-ray-"


@dataclass(eq=False, kw_only=True)
class Task(Job):
    """Holds a task of Ray."""

    reference: Any = None  # None while cluster.jobs others are in Ray's queue
    dies_as_one: bool = False  # where Ray lost sight of its node

    def begin(self, reference: Any) -> None:
        """Note what Ray gave for the task when it was submitted."""
        self.reference, self.name = reference, reference.task_id().hex()


class RayExecutor:
    """Runs tasks for the runs of `config` on the Ray cluster at cluster.address."""

    report: Callable[[str], None] = staticmethod(print)

    def __init__(self, config: Config) -> None:
        assert config.cluster is not None
        self.ray, self.cluster = _connected(config.cluster.address), config.cluster
        have_gpus = any(node["Resources"].get("GPU") for node in self._nodes())
        wanted = self.cluster.gpus_of_a_job(config.trainer.device)
        self.gpus = wanted if self.cluster.gpus is not None or have_gpus else 0.0
        self.cpus = self.cluster.cpus or 1
        self.waits_for = "cores"
        if not self._hosts():
            needs = f"{self.cpus} cores and {self.gpus:g} GPUs"
            self._wait_for(f"no node has {needs} (cluster.cpus, cluster.gpus)")
        options = {"num_cpus": self.cpus, "num_gpus": self.gpus, "max_retries": 0}
        self.train = self.ray.remote(**options)(node_task())
        self.nodes = Nodes(lambda line: self.report(line))
        self.stop_file = _stop_file(config.runs_dir)
        self.head = self.ray.get_runtime_context().gcs_address
        self.answered, self.lost = time.monotonic(), False

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in self.ray.nodes() if node["Alive"]]

    def _hosts(self) -> set[str]:
        """Return the host names of the nodes that have what a task needs, busy or not."""
        wanted = {"CPU": self.cpus, "GPU": self.gpus}
        return {
            node["NodeManagerHostname"]
            for node in self._nodes()
            if all(node["Resources"].get(key, 0) >= value for key, value in wanted.items())
        }

    def _wait_for(self, reason: str) -> None:
        """Note, and report once, why tasks wait that may wait for ever."""
        if reason != self.waits_for:
            self.report(f"cluster=ray: {reason}")
        self.waits_for = reason

    def submit(self, runs: Sequence[Run], busy: Sequence[Run], open_jobs: int) -> list[Job]:
        """Return a task for each of `runs`, of which Ray gets as many as cluster.jobs lets in."""
        if self.lost:
            raise UserError(f"cluster=ray: {self.head} does not answer any more")
        tasks = [Task("not yet of Ray", [run]) for run in runs]
        limit = len(tasks) if self.cluster.jobs is None else self.cluster.jobs - open_jobs
        for task in tasks[: max(0, limit)]:
            self._begin(task)
        return list(tasks)

    def _begin(self, task: Task) -> None:
        (run,) = task.runs
        given = self._task_config(run.config), run.replaces
        train = self.train.options(scheduling_strategy=self._elsewhere())
        task.begin(train.remote(*given, os.getcwd(), self.cpus, str(self.stop_file)))

    def _elsewhere(self) -> Any:
        """Return how Ray is to choose a node: none that is avoided, by the label of its number.

        The label has another name from version to version. A node that is started anew is another
        one to Ray, and the same to us, as it has its host name.
        """
        avoided = [
            (key, node["NodeID"])
            for node in (self._nodes() if self.nodes.avoided else [])
            for key, value in node["Labels"].items()
            if node["NodeManagerHostname"] in self.nodes.avoided and value == node["NodeID"]
        ]
        if not avoided:
            return "DEFAULT"
        ways = importlib.import_module("ray.util.scheduling_strategies")
        numbers = [number for _, number in avoided]
        return ways.NodeLabelSchedulingStrategy(hard={avoided[0][0]: ways.NotIn(*numbers)})

    def _task_config(self, config: Config) -> dict[str, Any]:
        """Return what a task trains; runs that share a GPU lease a part of it each."""
        parts = int(1 / self.gpus) if self.gpus else 1
        devices = config.devices
        devices = replace(devices, runs_per_gpu=max(devices.runs_per_gpu, parts))
        return config_dict(replace(config, cluster=None, devices=devices))

    def poll(self, jobs: Sequence[Job]) -> None:
        """See which tasks are over, submit those that there is room for, find those that began.

        Raises a UserError while the head of Ray does not answer, until it counts as lost.
        """
        if not self._head_answers():
            return self._cancel_all(jobs)
        tasks = {t.reference: t for t in jobs if isinstance(t, Task) and t.reference is not None}
        for reference in self._over(list(tasks)):
            self._end(tasks.pop(reference))
        held = (t for t in jobs if isinstance(t, Task) and t.reference is None and not t.is_over)
        room = len(jobs) if self.cluster.jobs is None else self.cluster.jobs - len(tasks)
        for task in islice(held, max(0, room)):
            self._begin(task)
        queued = (t for t in tasks.values() if t.state is State.QUEUED)
        for task in islice(queued, POLLED):
            progress = task.runs[0].directory.read_progress()
            if progress.get("job") == task.name:
                task.state, task.started, task.node = State.RUNNING, True, progress["host"]
            else:
                task.reason = self.waits_for
        mine = [task for task in jobs if isinstance(task, Task)]
        if any(task.is_over and task.node for task in mine):
            self.nodes.judge(mine, self._hosts())
        if self.nodes.avoided and not self._hosts() - self.nodes.avoided:
            self._wait_for(f"all nodes refuse ({', '.join(sorted(self.nodes.avoided))})")

    def _head_answers(self) -> bool:
        """Return whether the head answers, False once it did not for long; else raise."""
        host, _, port = self.head.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except OSError as error:
            if time.monotonic() - self.answered > HEAD_SECONDS:
                return False
            raise UserError(f"cluster=ray: {self.head} does not answer ({error})") from None
        self.answered = time.monotonic()
        return True

    def _cancel_all(self, jobs: Sequence[Job]) -> None:
        """Give up the cluster: tasks that live on write their checkpoints and end."""
        self.lost = True
        self.report("cluster=ray: the head is lost, and with it the cluster; runs are as on disk")
        self.stop_file.unlink(missing_ok=True)
        for job in jobs:
            job.state, job.reason = State.CANCELLED, "the head of Ray is lost"

    def _over(self, references: list[Any]) -> list[Any]:
        if not references:
            return []
        return self.ray.wait(references, num_returns=len(references), timeout=0)[0]

    def _end(self, task: Task) -> None:
        task.state = State.OVER
        (run,) = task.runs
        try:
            task.node, outcome, lacks = self.ray.get(task.reference)
            if lacks and not self.stop_file.exists():
                outcome = "interrupted"  # it is nowhere: the sweep stops
            elif lacks and run not in task.outcomes:
                log_line(run, f"cluster=ray: its node {task.node} cannot train: {lacks}")
            task.outcomes[run], task.reason = outcome, outcome
        except self.ray.exceptions.TaskCancelledError:
            task.state, task.reason = State.CANCELLED, "cancelled"
        except self.ray.exceptions.RayTaskError as error:
            task.reason = str(error).strip().splitlines()[-1]
            task.outcomes[run] = REFUSED
            log_line(run, f"cluster=ray: {task.reason}")
        except self.ray.exceptions.RayError as error:
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            task.reason = said.partition(". ")[0]

    def last_log_line(self, job: Job) -> str:
        """Return nothing: a task has no log but that of its run."""
        return ""

    def cancel(self, jobs: Sequence[Job], kill: bool) -> None:
        """Have tasks write their checkpoints and end, or kill them."""
        self.stop_file.unlink(missing_ok=True)
        for task in jobs:
            assert isinstance(task, Task)
            if task.reference is None:
                task.state = State.CANCELLED
            elif not self.lost:
                self.ray.cancel(task.reference, force=kill)

    def pause(self, elapsed: float) -> float:
        """Return the seconds until the next poll: more the longer the sweep takes."""
        return min(SLOWEST_SECONDS, 1 + elapsed / 30)

    def close(self, jobs: Sequence[Job]) -> None:
        """Leave the cluster of Ray; it kills what goes on."""
        self.stop_file.unlink(missing_ok=True)
        self.ray.shutdown()


def _connected(given_address: str | None) -> Any:
    """Return the module ray, connected to the cluster at that address."""
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError:
        expected = "expected the package ray, which pip install 'resnests[ray]' adds"
        raise UserError(f"cluster=ray: {expected}") from None
    given = {"PYTHONPATH": python_path(), COMMAND: command_line()}
    given |= {key: os.environ[key] for key in ("RESNESTS_LOCK_DIR",) if key in os.environ}
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    address = os.environ.get("RAY_ADDRESS", "auto") if given_address == "auto" else given_address
    try:
        host, colon, port = str(address).rpartition(":")
        if colon:  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address=address, runtime_env={"env_vars": given}, **quiet)
    except Exception as error:  # of many kinds, by what is wrong
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        expected = f"expected a Ray cluster there, which ray start --head makes ({said})"
        raise UserError(f"cluster.address={address}: {expected}") from error
    return ray


def _stop_file(runs_dir: str) -> Path:
    """Make the file that gives tasks leave to go on: cancel() was seen to miss one that just began,
    where the nodes of Ray ignored SIGINT, as all do that a script starts with &.

    This process holds it, so that those which killed sweeps left behind can be told, and go.
    """
    folder = Path(runs_dir).resolve()
    for old in folder.glob(f"{_STOP_FILE}*"):
        with suppress(OSError), open(old) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            old.unlink()
    with tempfile.NamedTemporaryFile(prefix=".", dir=folder, delete=False) as made:
        path = Path(made.name)
    lock_until_exit(path)
    return path.rename(path.with_name(_STOP_FILE + path.name[1:]))
