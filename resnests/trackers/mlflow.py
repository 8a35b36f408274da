"""Copy runs to MLflow, where the folder of runs is an experiment, and a tag has the id of a run."""

from __future__ import annotations

import os
import tempfile
import time as clock
from contextlib import suppress
from pathlib import Path

os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # the next epoch tries again anyhow

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from resnests.trackers.tracker import Row, TrackedRun

ID = "resnests.id"
STATUS = {"complete": "FINISHED", "interrupted": "KILLED", "killed": "KILLED"}  # else FAILED
SQLITE = "sqlite:///"
BATCH = 100  # parameters that MLflow takes at once


class MLflow:
    """Sends metrics by epoch, parameters, tags and figures by MLflow's own client."""

    def __init__(self, uri: str, experiment: str | None, artifacts: str | None) -> None:
        self.uri, self.experiment, self.artifacts = uri, experiment, artifacts

    def start(self, run: TrackedRun) -> set[int]:
        make_store(self.uri)
        self.client = MlflowClient(tracking_uri=self.uri)
        experiment = self._experiment(self.experiment or run.sweep)
        found = self.client.search_runs([experiment], f"tags.`{ID}` = '{run.id}'", max_results=1)
        if found:
            known = found[0]
        else:
            known = self.client.create_run(
                experiment,
                start_time=int(run.started * 1000),
                tags=run.tags | {ID: run.id, "group": run.group},
                run_name=run.name,
            )
        self.id = known.info.run_id
        self.client.update_run(self.id, status="RUNNING")
        params = [
            Param(key, str(value))
            for key, value in run.hyperparameters.items()
            if key not in known.data.params  # MLflow has them once and for all
        ]
        for first in range(0, len(params), BATCH):
            self.client.log_batch(self.id, params=params[first : first + BATCH])
        return {metric.step for metric in self.client.get_metric_history(self.id, "train_loss")}

    def epoch(self, epoch: int, values: Row, time: float) -> None:
        stamp = int(time * 1000)
        metrics = [Metric(name, value, stamp, epoch) for name, value in values.items()]
        self.client.log_batch(self.id, metrics=metrics)

    def end(self, status: str, metrics: Row, figures: dict[str, bytes]) -> None:
        stamp = int(clock.time() * 1000)
        known = self.client.get_run(self.id).data.metrics
        missing = {f"final/{name}": value for name, value in metrics.items()}
        values = [Metric(k, v, stamp, 0) for k, v in missing.items() if k not in known]
        self.client.log_batch(self.id, metrics=values)
        with tempfile.TemporaryDirectory() as folder:
            for name, png in figures.items():
                file = Path(folder) / f"{name}.png"
                file.write_bytes(png)
                self.client.log_artifact(self.id, str(file), "figures")
        self.client.set_terminated(self.id, STATUS.get(status, "FAILED"))

    def _experiment(self, name: str) -> str:
        """Return the id of the experiment, which is made where there is none."""
        known = self.client.get_experiment_by_name(name)
        if known is None:
            try:
                return self.client.create_experiment(name, artifact_location=self.artifacts)
            except MlflowException:  # another run made it in this very moment
                known = self.client.get_experiment_by_name(name)
                if known is None:
                    raise
        return known.experiment_id


def make_store(uri: str) -> None:
    """Make an sqlite store whole or not at all, where there is none.

    MLflow itself makes its tables one by one, and refuses for ever a file in which it was killed.
    """
    file = Path(uri.removeprefix(SQLITE))
    if not uri.startswith(SQLITE) or file.exists():
        return
    with tempfile.TemporaryDirectory(prefix=".mlflow-", dir=file.parent) as folder:
        made = Path(folder) / file.name
        MlflowClient(tracking_uri=f"{SQLITE}{made}").search_experiments()
        with suppress(FileExistsError):  # another run was faster
            os.link(made, file)
