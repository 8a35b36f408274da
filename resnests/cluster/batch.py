"""What a job of Slurm runs: some runs of a sweep, several at once where its node has room.

    python -m resnests.cluster.batch     # RESNESTS_SWEEP says of which sweep

Shortly before its time limit a job gets SIGUSR2. It then writes checkpoints and queues again by
itself, as the sweep may be gone, unless it got nowhere.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from resnests.cluster.submission import members
from resnests.config.schema import Config, config_from
from resnests.errors import UserError
from resnests.runs.directory import RunDirectory
from resnests.runs.record import FINAL
from resnests.sweep.child import job, last_line
from resnests.sweep.devices import allocate
from resnests.sweep.protocol import JOB, Order, token_path
from resnests.sweep.stop import Stop


def main() -> int:
    """0 where every run has come to its end."""
    array, task = os.environ["SLURM_ARRAY_JOB_ID"], os.environ["SLURM_ARRAY_TASK_ID"]
    os.environ[JOB] = f"{array}_{task}"
    token = token_path()
    configs = {}
    for index in members(token.parent, int(task)):
        if (received := Order.receive(index)) is not None:
            configs[index] = config_from(received[0].config)
    before = _left(configs)
    with Stop(token) as stop:
        train(configs, list(before), stop)
    left = _left(configs)
    for index, epochs in left.items():
        if epochs is None:
            print(last_line(RunDirectory.of(configs[index])), flush=True)
    if left and left != before and stop.last == signal.SIGUSR2:
        subprocess.run(["scontrol", "requeue", f"{array}_{task}"])  # or the sweep submits again
    return 1 if left else 0


def train(configs: dict[int, Config], indices: list[int], stop: Stop) -> None:
    """Of `configs` those at `indices`, which then share what this job has."""
    if not indices:
        return
    try:
        at_once = allocate(configs[indices[0]], len(indices)).concurrent
    except UserError:  # which each of them says by itself
        at_once = 1
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(lambda index: job(index, at_once), indices))


def _left(configs: dict[int, Config]) -> dict[int, int | None]:
    """Those that are not at their end, and after how many epochs: None without a record."""
    records = {index: RunDirectory.of(config).sound_record() for index, config in configs.items()}
    return {
        index: record.epochs if record else None
        for index, record in records.items()
        if record is None or record.status not in FINAL
    }


if __name__ == "__main__":
    sys.exit(main())
